"""Speed and memory of crops, image features and predictions, each beside a peer in the same run.

    python benchmarks/images.py --data FOLDER --out OUT --parts crops encoder slide cluster

crops      crops a second on a her2st section, 224 px, from zarr: this package, spatialdata's ImageTilesDataset, squidpy's
           generator of spot crops, and the same squares resampled from an image that is held in memory
before     crops a second and a CPU second, several fields and densities of spots, beside an earlier version of this package
           (--before SRC, its folder `src`); each measurement is a process of its own, in turn
encoder    `image_features` with timm's ResNet-18 beside its bare forward pass
slide      a synthetic slide of 60 000 × 60 000 px: features and predictions into a store, peak memory and time against
           the number of spots, each in a process of its own; OUT/slide.png
cluster    features of that slide on two dask workers beside one
fresh      features of a Visium section of 92 megapixels as `spatialdata_io.visium` opens it, and as it is once its pixels were
           parsed in memory, beside the same read back from zarr

FOLDER is that of the test data (her2st); OUT takes the stores and images.csv. Runs of peers are interleaved and medians
are taken: measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import spatialdata
import zarr
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, get_transformation

import stcontrast as stc
from stcontrast._reading import SlideImage, image_from_array, resolve_slides
from stcontrast.pp._crops import iter_batches
from stcontrast.pp._features import FeatureSpec, encode_centers

SIZE_PX = 224
CHUNK = 1024
SLIDE_PX = 60_000
FACTORS = (2, 2, 2, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the test data; for crops and encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["crops", "encoder", "slide", "cluster"])
    parser.add_argument("--spots", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="`src` of an earlier version; for before")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-version", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    stc.settings.progress = False
    if arguments.one is not None:
        print(json.dumps(one_slide(arguments.one, arguments.out)))
        return
    if arguments.one_version:
        print(json.dumps(one_version(arguments)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "crops": crops,
        "before": before,
        "encoder": encoder,
        "slide": slide,
        "cluster": cluster,
        "fresh": fresh,
    }
    for part in arguments.parts:
        print(f"== {part}", flush=True)
        parts[part](arguments)


# crops


def her2st(arguments):
    """Section C2 from a zarr store in chunks of 1024 pixels."""
    store = arguments.out / "C2.zarr"
    if not store.exists():
        Image.MAX_IMAGE_PIXELS = None
        folder = arguments.data / "her2st" / "data"
        spots = pd.read_table(folder / "ST-spotfiles" / "C2_selection.tsv")
        with Image.open(next((folder / "ST-imgs" / "C" / "C2").glob("*.jpg"))) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        spatial_data(pixels, spots[["pixel_x", "pixel_y"]].to_numpy(dtype=float), um_per_px=0.72).write(store)
    return spatialdata.read_zarr(store)


def spatial_data(pixels, centers, *, um_per_px):
    here = {"slide": Identity()}
    image = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), c_coords=("r", "g", "b"), scale_factors=[2, 2],
        chunks=(3, CHUNK, CHUNK), transformations=here,
    )  # fmt: skip
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(centers)), "spot": np.arange(len(centers))})
    table = ad.AnnData(obs=obs.set_index(obs["spot"].astype(str).rename(None)))
    table.uns["stcontrast"] = {"um_per_px": um_per_px}
    return SpatialData(
        images={"he": image},
        shapes={"spots": ShapesModel.parse(centers, geometry=0, radius=SIZE_PX / 2, transformations=here)},
        tables={"table": TableModel.parse(table, region=["spots"], region_key="region", instance_key="spot")},
    )


def crops(arguments):
    sdata = her2st(arguments)
    of_slide = resolve_slides(sdata).slides[0]
    held = np.ascontiguousarray(np.moveaxis(of_slide.image.levels[0].compute(), 0, -1))
    in_memory = image_from_array(held, "held")
    n = len(of_slide.centers)

    def ours(image):
        batches = iter_batches(image, of_slide.centers, sides=(SIZE_PX,), size_px=SIZE_PX, batch=64)
        return sum(len(rows) for rows, _ in batches)

    def plain(_):
        for x, y in of_slide.centers:
            left, top = int(np.floor(x - SIZE_PX / 2)) - 2, int(np.floor(y - SIZE_PX / 2)) - 2
            window = Image.fromarray(held[top : top + SIZE_PX + 5, left : left + SIZE_PX + 5])
            box = (x - SIZE_PX / 2 - left, y - SIZE_PX / 2 - top, x + SIZE_PX / 2 - left, y + SIZE_PX / 2 - top)
            np.asarray(window.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box))
        return n

    def sliced(_):
        for x, y in of_slide.centers.astype(int):
            held[y - SIZE_PX // 2 : y + SIZE_PX // 2, x - SIZE_PX // 2 : x + SIZE_PX // 2].copy()
        return n

    tiles = tile_dataset(sdata)
    of_squidpy = {
        "from zarr": spot_crops(sdata, sdata.images["he"]["scale0"]["image"]),
        "in memory": spot_crops(sdata, sdata.images["he"]["scale0"]["image"].compute()),
    }
    rasterized = tile_dataset(sdata, rasterize=True, rasterize_kwargs={"target_width": SIZE_PX})
    rates = interleaved(
        {
            "from zarr": lambda: ours(of_slide.image),
            "ImageTilesDataset": lambda: tiles(20),
            "ImageTilesDataset, rasterized": lambda: rasterized(20),
            "squidpy's generate_spot_crops, from zarr": lambda: of_squidpy["from zarr"](20),
            "squidpy's generate_spot_crops, in memory": lambda: of_squidpy["in memory"](n),
            "held in memory, same reader": lambda: ours(in_memory),
            "held in memory, resampled one by one": lambda: plain(None),
            "held in memory, whole pixels copied": lambda: sliced(None),
        },
        arguments.repeats,
    )
    table = pd.Series(rates, name="crops a second").to_frame()
    table["from zarr, times that"] = rates["from zarr"] / table["crops a second"]
    report(table, arguments.out / "crops.csv")


def tile_dataset(sdata, **options):
    from spatialdata.dataloader import ImageTilesDataset

    # it widens the shapes' radii in place: a copy
    radii = sdata.shapes["spots"].copy()
    dataset = ImageTilesDataset(
        sdata, regions_to_images={"spots": "he"}, regions_to_coordinate_systems={"spots": "slide"}, table_name="table",
        **options,
    )  # fmt: skip
    sdata.shapes["spots"] = radii

    def read(n):
        for i in range(n):
            (tile,) = dataset[i].images.values()
            np.asarray((tile["scale0"]["image"] if hasattr(tile, "children") else tile).data)
        return n

    return read


def spot_crops(sdata, pixels):
    """Squidpy's generator on the same image: whole pixels, not resampled."""
    from squidpy.im import ImageContainer

    container = ImageContainer(pixels.transpose("y", "x", "c"), layer="he", lazy=True)
    table = sdata["table"].copy()
    table.obsm["spatial"] = np.array([(point.x, point.y) for point in sdata["spots"].geometry])
    table.uns["spatial"] = {"he": {"scalefactors": {"spot_diameter_fullres": float(SIZE_PX)}}}

    def read(n):
        crops = container.generate_spot_crops(table, library_id="he", obs_names=table.obs_names[:n], as_array="he")
        return sum(1 for _ in crops)

    return read


# an earlier version

# um a pixel of the section: 0.72
FIELDS = {
    "the image's own resolution": (SIZE_PX * 0.72,),
    "200, 400, 800 um": (200, 400, 800),
    "200, 400, 800 um, no pyramid": (200, 400, 800),
    "800 um, no pyramid": (800,),
    "800 um at 0.25 um a pixel, no pyramid": (800 * 0.72 / 0.25,),
}


def before(arguments):
    if arguments.before is None:
        sys.exit("`before` needs --before SRC, for instance `src` of a git worktree.")
    her2st(arguments)
    here = Path(stc.__file__).parents[1]
    versions = {"now": here, "before": arguments.before}
    rounds = {version: [] for version in versions}
    for _ in range(arguments.repeats):
        for version, folder in versions.items():
            command = [sys.executable, __file__, "--out", str(arguments.out), "--one-version"]
            environment = os.environ | {"PYTHONPATH": str(folder)}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rounds[version].append(json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rounds["now"][0]).T[[]]
    for unit in ("second", "CPU second"):
        for version, found in rounds.items():
            values = [pd.DataFrame(one).T[unit] for one in found]
            table[f"{version}, a {unit}"] = pd.concat(values, axis=1).median(axis=1)
        table[f"times before ({unit})"] = table[f"now, a {unit}"] / table[f"before, a {unit}"]
    report(table, arguments.out / "before.csv")


def one_version(arguments):
    """Crops a second and a CPU second of the version that is imported, for every field and density of spots."""
    of_slide = resolve_slides(her2st(arguments)).slides[0]
    flat = SlideImage("flat", of_slide.image.levels[:1], (1.0,))
    # Visium's pitch of 100 um, over the part of the section that has spots
    (left, top), (right, bottom) = of_slide.centers.min(axis=0), of_slide.centers.max(axis=0)
    pitch = 100 / 0.72
    x, y = np.meshgrid(np.arange(left, right, pitch), np.arange(top, bottom, pitch * np.sqrt(0.75)))
    x[1::2] += pitch / 2
    lattices = {"legacy ST": of_slide.centers, "Visium": np.column_stack([x.ravel(), y.ravel()])}
    found = {}
    for lattice, centers in lattices.items():
        for fields, sides in FIELDS.items():
            image = flat if "no pyramid" in fields else of_slide.image
            for _ in range(2):
                start, cpu = time.perf_counter(), time.process_time()
                batches = iter_batches(image, centers, sides=[side / 0.72 for side in sides], size_px=SIZE_PX, batch=64)
                n = sum(len(rows) for rows, _ in batches) * len(sides)
                rates = {"second": n / (time.perf_counter() - start), "CPU second": n / (time.process_time() - cpu)}
            found[f"{lattice} ({len(centers)}), {fields}"] = rates
    return found


# encoder


def encoder(arguments):
    import torch

    of_slide = resolve_slides(her2st(arguments)).slides[0]
    network = stc.pp.TimmEncoder("resnet18", pretrained=False)
    spec = FeatureSpec(network, (SIZE_PX * of_slide.um_per_px,))
    bare = network._model
    batch = torch.randn(64, 3, SIZE_PX, SIZE_PX)
    if network.channels_last:
        batch = batch.to(memory_format=torch.channels_last)
    n = len(of_slide.centers)

    def forward():
        with torch.inference_mode():
            for start in range(0, n, 64):
                bare(batch[: min(64, n - start)])
        return n

    def features():
        parts = encode_centers(of_slide.image, of_slide.centers, of_slide.um_per_px, spec)
        return sum(len(rows) for rows, _ in parts)

    rates = interleaved({"image_features": features, "bare forward pass": forward}, arguments.repeats)
    table = pd.Series(rates, name="images a second").to_frame()
    table["share of the forward pass"] = table["images a second"] / rates["bare forward pass"]
    report(table, arguments.out / "encoder.csv")


# a whole slide


def write_slide(folder):
    """A pyramid whose every chunk is the same file: a slide of 10.8 GB of pixels that takes no room on the disk."""
    tissue = np.asarray(stc.datasets.toy(n_donors=1, n_spots=30)["donor1_a_he"]["scale0"]["image"].data)
    repeats = [-(-CHUNK // size) for size in tissue.shape[1:]]
    tile = np.tile(tissue, (1, *repeats))[:, :CHUNK, :CHUNK]
    for level in range(len(FACTORS) + 1):
        side = -(-SLIDE_PX // 2**level)
        array = zarr.create_array(
            folder / f"{level}", shape=(3, side, side), chunks=(3, CHUNK, CHUNK), dtype=np.uint8, overwrite=True
        )
        array[:, :CHUNK, :CHUNK] = tile
        first = folder / f"{level}" / "c" / "0" / "0" / "0"
        n = -(-side // CHUNK)
        for row in range(n):
            (first.parent.parent / f"{row}").mkdir(exist_ok=True)
            for column in range(n):
                if (row, column) != (0, 0):
                    os.link(first, first.parent.parent / f"{row}" / f"{column}")
        means = tile.reshape(3, CHUNK // 2, 2, CHUNK // 2, 2).mean(axis=(2, 4)).astype(np.uint8)
        tile = np.tile(means, (1, 2, 2))


def read_slide(folder):
    import dask.array as da

    small = np.zeros((3, 2 ** len(FACTORS), 2 ** len(FACTORS)), dtype=np.uint8)
    element = Image2DModel.parse(
        da.from_array(small), dims=("c", "y", "x"), c_coords=("r", "g", "b"), scale_factors=list(FACTORS)
    )
    from xarray import DataArray, DataTree

    levels = {}
    for level, (name, node) in enumerate(element.children.items()):
        data = da.from_zarr(str(folder / f"{level}"))
        coords = {"c": ["r", "g", "b"]} | {
            axis: (np.arange(size) + 0.5) * 2**level for axis, size in zip("yx", data.shape[1:], strict=True)
        }
        levels[name] = DataArray(
            data, dims=("c", "y", "x"), coords=coords, name="image", attrs=node["image"].attrs
        ).to_dataset()
    return SpatialData(images={"he": DataTree.from_dict(levels)})


def slide(arguments):
    folder = arguments.out / "whole_slide"
    if not folder.exists():
        write_slide(folder)
    train = stc.datasets.toy(n_donors=3, n_genes=1000)
    model = stc.tl.fit(train, batch_key="donor", method="ridge")
    model.save(arguments.out / "model", overwrite=True)
    rows = []
    for n_spots in sorted(arguments.spots):
        (arguments.out / "task.json").write_text(json.dumps({"spots": n_spots}))
        command = [sys.executable, __file__, "--out", str(arguments.out), "--one", str(arguments.out / "task.json")]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    report(table.set_index("spots"), arguments.out / "slide.csv")
    if len(table) > 1:
        for what in ("seconds", "cpu_seconds"):
            slope = np.polyfit(np.log(table["spots"]), np.log(table[what]), 1)[0]
            print(f"slope of log {what} over log spots: {slope:.2f}")
        plot(table, arguments.out / "slide.png")


def grid(sdata, n_spots):
    """Spots of Visium's lattice all over the slide; half a µm a pixel."""
    pitch = np.sqrt((SLIDE_PX * 0.5) ** 2 / (n_spots * np.sqrt(0.75)))
    stc.pp.tissue_grid(sdata, um_per_px=0.5, pitch_um=pitch, spot_diameter_um=pitch / 2, tissue=None)


def one_slide(task, out):
    """Features and predictions of so many spots, in this process; GiB beyond what model and encoder take."""
    import shutil

    n_spots = json.loads(task.read_text())["spots"]
    model = stc.models.load(out / "model")
    sdata = read_slide(out / "whole_slide")
    # a first small prediction has everything imported and loaded
    grid(sdata, 50)
    stc.tl.predict_expression(sdata, model)
    del sdata
    before = psutil.Process().memory_info().rss / 2**30
    sdata = read_slide(out / "whole_slide")
    grid(sdata, n_spots)
    shutil.rmtree(out / "pred.zarr", ignore_errors=True)
    shutil.rmtree(out / "pred.zarr.partial", ignore_errors=True)
    start, cpu = time.perf_counter(), time.process_time()
    stc.tl.predict_expression(sdata, model, store=out / "pred.zarr")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    found = {
        "spots": sdata["table"].n_obs, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": peak_gib(),
        "before_gib": before, "beyond_gib": peak_gib() - before,
    }  # fmt: skip
    shutil.rmtree(out / "pred.zarr")
    return found


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plot(table, file):
    import matplotlib.pyplot as plt

    figure, (of_time, of_memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    of_time.plot(table["spots"], table["seconds"], "o-", label="clock")
    of_time.plot(table["spots"], table["cpu_seconds"], "s--", label="all cores together")
    of_time.set(xlabel="spots", ylabel="seconds", xlim=0, ylim=0)
    of_time.legend(frameon=False)
    of_memory.plot(table["spots"], table["beyond_gib"], "o-")
    of_memory.axhline(2, color="grey", linewidth=0.8)
    of_memory.set(xlabel="spots", ylabel="GiB beyond model and encoder", xlim=0, ylim=(0, 2.2))
    figure.savefig(file, dpi=150)
    print(f"wrote {file}")


# a cluster


def fresh(arguments):
    import tempfile

    import spatialdata_io

    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["STCONTRAST_TEST_DATA"] = str(arguments.data)
    from tests.journeys import folders

    def opened(folder):
        scan = next((folder / "S1").glob("*_HE.tif"))
        sdata = spatialdata_io.visium(folder / "S1/outs", dataset_id="S1", fullres_image_file=scan)
        sdata["table"].var_names_make_unique()
        return sdata

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folders.visium(folder, {"S1": "C4"}, real=True)
        opened(folder).write(folder / "S1.zarr")
        stc.pp.image_features(opened(folder), image_key="S1_hires_image")  # warm-up
        held = spatialdata.read_zarr(folder / "S1.zarr")["S1_full_image"]["scale0"].image.compute()

        def parsed():
            sdata = spatialdata.read_zarr(folder / "S1.zarr")
            here = get_transformation(sdata["S1_full_image"], get_all=True)
            del sdata["S1_full_image"]
            sdata["S1_full_image"] = Image2DModel.parse(
                held.data, dims=("c", "y", "x"), c_coords=held.c.to_numpy(), scale_factors=[2, 2, 2, 2],
                transformations=here,
            )  # fmt: skip
            return sdata

        ways = {
            "from the reader": lambda: opened(folder),
            "parsed in memory": parsed,
            "from zarr": lambda: spatialdata.read_zarr(folder / "S1.zarr"),
        }
        seconds = {name: [] for name in ways}
        for name in [*ways] * arguments.repeats:
            sdata = ways[name]()
            start = time.perf_counter()
            stc.pp.image_features(sdata, image_key="S1_full_image")
            seconds[name].append(time.perf_counter() - start)
    table = pd.Series({name: np.median(values) for name, values in seconds.items()}, name="seconds").to_frame()
    table["times from zarr"] = table["seconds"] / table.loc["from zarr", "seconds"]
    report(table, arguments.out / "fresh.csv")


def cluster(arguments):
    from distributed import Client, LocalCluster

    folder = arguments.out / "whole_slide"
    if not folder.exists():
        write_slide(folder)
    n_spots = min(arguments.spots)
    seconds = {}
    for n_workers in (1, 2):
        with LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as of, Client(of):
            for what, n in (("warm-up", 500), (n_workers, n_spots)):
                sdata = read_slide(folder)
                grid(sdata, n)
                start = time.perf_counter()
                stc.pp.image_features(sdata)
                seconds[what] = time.perf_counter() - start
    del seconds["warm-up"]
    table = pd.Series(seconds, name="seconds").rename_axis("workers").to_frame()
    table["times one worker"] = seconds[1] / table["seconds"]
    report(table, arguments.out / "cluster.csv")


def interleaved(runs, repeats):
    """Median of what is done in a second, by name; the first round only warms up."""
    rates = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            n = run()
            if i:
                rates[name].append(n / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in rates.items()}


def report(table, file):
    table.to_csv(file)
    print(table.round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
