"""Wall time of the journeys of the guide, relative to reading their images once.

    STCONTRAST_TEST_DATA=../shared/data .venv/bin/python benchmarks/journeys.py          # small drawn slides
    STCONTRAST_TEST_DATA=../shared/data .venv/bin/python benchmarks/journeys.py --real   # Visium of real sections

Every journey is the code of its section in docs/user_guide/journeys.md, from the instrument's folder to a prediction that
was read back from zarr. The image is read by tifffile or Pillow, once and whole. Imports are not counted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[1]))
Image.MAX_IMAGE_PIXELS = None

import squidpy  # noqa: E402
import tifffile  # noqa: E402
from tests.journeys import folders  # noqa: E402
from tests.journeys.guide import follow  # noqa: E402

import stcontrast as stc  # noqa: E402

SAMPLES = {"S1": "C4", "S2": "C5", "S3": "C6"}


def visium(folder: Path, *, real: bool) -> None:
    folders.visium(folder, SAMPLES, real=real)
    folders.scan(folder / "new_HE.tif", real="C3" if real else None)


def xenium(folder: Path) -> None:
    for seed, name in enumerate(("X1", "X2", "X3")):
        folders.xenium(folder / name, seed=seed)


def journeys(*, real: bool) -> dict[str, tuple[Callable[[Path], None], str]]:
    """Section of the guide: what makes its folder, and the images that it reads."""
    of_visium = {
        "Visium with the full-resolution scan": "**/*_HE.tif",
        "Visium with the hires image only": "**/tissue_hires_image.png",
        "Visium as AnnData": "**/tissue_hires_image.png",
    }
    found: dict[str, tuple[Callable[[Path], None], str]] = {
        name: (lambda folder: visium(folder, real=real), images) for name, images in of_visium.items()
    }
    found["Visium HD"] = lambda folder: folders.visium_hd(folder, {"HD1": "C4", "HD2": "C5"}), "**/*_tissue_image.tif"
    found["Xenium"] = xenium, "**/*_he_image.ome.tif"
    found["Legacy ST from text files"] = (
        lambda folder: folders.legacy(folder, {"L1": "C4", "L2": "C5"} if real else {"L1": "1", "L2": "2"}, real=real),
        "*_HE.jpg",
    )
    return found


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix == ".tif":
            tifffile.imread(path)
        else:
            np.asarray(Image.open(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--real", action="store_true", help="real sections at full resolution where a journey can have them"
    )
    parser.add_argument("--only", help="the journeys whose name holds this text")
    given = parser.parse_args()
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    warm_up()
    print(f"{'journey':38s} {'images':>9s} {'read once':>10s} {'journey':>9s} {'ratio':>7s}")
    for name, (make, images) in journeys(real=given.real).items():
        if given.only and given.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder, stc.settings.override(progress=False):
            make(Path(folder))
            paths = sorted(Path(folder).glob(images))
            once = min(seconds(lambda paths=paths: read(paths)) for _ in range(3))
            before = Path.cwd()
            os.chdir(folder)
            took = seconds(lambda name=name: follow(name))
            os.chdir(before)
        print(f"{name:38s} {len(paths):9d} {once:8.2f} s {took:7.1f} s {took / once:6.0f}×", flush=True)


def warm_up() -> None:
    """Import and compile what the first journey would pay for."""
    sdata = stc.datasets.toy(n_donors=2, n_spots=20, n_genes=20)
    stc.tl.fit(sdata, batch_key="donor", method="ridge", encoder="color", field_um=100)
    stc.pl.spatial_pred(sdata, "GENE1", show=False)
    squidpy.gr.spatial_neighbors_grid(sdata["stc_pred"], n_neighs=6)
    squidpy.gr.spatial_autocorr(sdata["stc_pred"], mode="moran", n_jobs=1)
    import spatialdata_io  # noqa: F401


if __name__ == "__main__":
    main()
