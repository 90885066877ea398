"""Folders as the instruments leave them: of small drawn H&E, or of real sections where the test data are there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from PIL import Image
from scipy.sparse import csc_matrix
from scipy.spatial import cKDTree

import stcontrast as stc
from tests.real_data import require, require_tool

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Section = tuple[NDArray[np.uint8], pd.DataFrame, NDArray[np.float64]]

__all__ = ["UM_PER_PX", "he_of", "legacy", "scan", "space_ranger", "visium", "visium_hd", "xenium"]

UM_PER_PX = 0.7
"""Of the full-resolution images."""
XENIUM_UM_PER_PX = 0.2125
# how much smaller the copies of a small slide are; the writer makes them 2000 and 600 pixels wide
SMALLER = {"hires": 0.4, "lowres": 0.1}


def drawn(seed: int, *, n_spots: int, n_genes: int = 510) -> Section:
    """H&E (height, width, 3), counts (spots × genes) and centres in pixels of a slide of the toy data."""
    sdata = stc.datasets.toy(n_donors=1, n_spots=n_spots, n_genes=n_genes, seed=seed)
    table = sdata["table"]
    picture = np.moveaxis(np.asarray(sdata["donor1_a_he"]["scale0"]["image"]), 0, -1)
    return picture, table.to_df(), table.obsm["spatial"]


def space_ranger(*, real: bool, n_spots: int = 90) -> Any:
    """The writer of Space Ranger's folders, at work on real sections or on drawn ones."""
    tool = require_tool("space_ranger")
    if real:
        tool.DATA = require("her2st", "data")
    else:
        tool.section = lambda name: drawn(int(name[1:]), n_spots=n_spots)
    return tool


def visium(out: Path, sections: dict[str, str], *, real: bool = False) -> None:
    """``<name>/outs`` and the scan ``<name>/<name>_HE.tif`` for every name; sections "C4", "C5", "C6"."""
    tool = space_ranger(real=real)
    genes = None
    for seed, (name, section) in enumerate(sections.items(), 1):
        genes = tool.visium(out, name, section, genes, seed)
        folder = out / name / "outs"
        _same_barcodes(folder)
        if not real:
            _smaller_copies([folder / "spatial"])


def visium_hd(out: Path, sections: dict[str, str], *, side: int = 420) -> None:
    """Folders of Visium HD with bins of 8 and 16 µm, of drawn sections."""
    tool = space_ranger(real=False)
    for seed, (name, section) in enumerate(sections.items()):
        tool.visium_hd(out, name, section, (150, 150), seed, side=side, n_genes=30)
        _smaller_copies([out / name / "spatial", *(out / name / "binned_outputs").glob("*/spatial")])


def _same_barcodes(folder: Path) -> None:
    """Barcodes of real slides come from one list: spots at one site of two slides have the same one."""
    path = folder / "spatial/tissue_positions.csv"
    positions = pd.read_csv(path)
    new = {old: f"SITE{i:012d}-1" for i, old in enumerate(positions["barcode"])}
    positions["barcode"] = positions["barcode"].map(new)
    positions.to_csv(path, index=False)
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        file["matrix/barcodes"][...] = [new[old.decode()].encode() for old in file["matrix/barcodes"][...]]


def _smaller_copies(folders: list[Path]) -> None:
    """Hires and lowres copies that are smaller than a small scan, too."""
    for folder in folders:
        path = folder / "scalefactors_json.json"
        if path.exists():
            factors = json.loads(path.read_text())
            path.write_text(json.dumps(factors | {f"tissue_{kind}_scalef": to for kind, to in SMALLER.items()}))
        for kind, to in SMALLER.items():
            scans = [*folder.parent.parent.glob("*_HE.tif"), *folder.parent.glob("*_tissue_image.tif")]
            if (folder / f"tissue_{kind}_image.png").exists():
                picture = Image.fromarray(tifffile.imread(scans[0]))
                size = round(picture.width * to), round(picture.height * to)
                picture.resize(size, Image.Resampling.BOX).save(folder / f"tissue_{kind}_image.png")


def scan(path: Path, *, seed: int = 9, real: str | None = None) -> NDArray[np.uint8]:
    """H&E alone, as a tif in tiles; returns its pixels."""
    pixels = drawn(seed, n_spots=60)[0] if real is None else space_ranger(real=True).section(real)[0]
    tifffile.imwrite(path, pixels, tile=(512, 512), compression="zlib", photometric="rgb")
    return pixels


def he_of(path: Path) -> NDArray[np.uint8]:
    """Pixels of a scan, read without any reader of spatial data."""
    return tifffile.imread(path)


def xenium(out: Path, *, seed: int = 0, he: bool = True) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A folder of Xenium (version 3): four stains, cells, and an H&E turned by 90 degrees that is aligned to them.

    Returns the centres of the cells in µm, and in pixels of the H&E.
    """
    tool = require_tool("space_ranger")
    rng = np.random.default_rng(seed)
    picture, counts, spots = drawn(seed + 20, n_spots=60, n_genes=40)
    out.mkdir(parents=True)
    # cells at random around the spots, each with the expression of its spot
    which = rng.integers(len(spots), size=240)
    in_he = spots[which] + rng.uniform(-45, 45, (len(which), 2))
    # pixels of the H&E to those of Xenium: turned, scaled and moved
    scale = UM_PER_PX / XENIUM_UM_PER_PX
    alignment = np.array([[0.0, -scale, scale * picture.shape[0]], [scale, 0.0, 40.0], [0.0, 0.0, 1.0]])
    in_focus = in_he @ alignment[:2, :2].T + alignment[:2, 2]
    um = in_focus * XENIUM_UM_PER_PX
    prefix = np.sort(rng.choice(2**31, len(which), replace=False)).astype(np.uint32)
    ids = np.array(["".join(chr(ord("a") + int(digit, 16)) for digit in f"{value:08x}") + "-1" for value in prefix])
    specs = {
        "analysis_sw_version": "xenium-3.1.0.4",
        "pixel_size": XENIUM_UM_PER_PX,
        "run_name": "run",
        "region_name": "r",
    }
    (out / "experiment.xenium").write_text(json.dumps(specs))
    area = rng.uniform(40, 120, len(which))
    pd.DataFrame(
        {"cell_id": ids, "x_centroid": um[:, 0], "y_centroid": um[:, 1], "transcript_counts": 0, "cell_area": area}
    ).to_parquet(out / "cells.parquet")
    tool.write_matrix(
        out / "cell_feature_matrix.h5", csc_matrix(counts.to_numpy(np.int32)[which].T), ids,
        [f"ENSG{i:011d}" for i in range(counts.shape[1])], list(counts.columns),
    )  # fmt: skip
    _write_outlines(out, ids, um, np.sqrt(area) / 2)
    _write_cells(out / "cells.zarr.zip", prefix, in_focus)
    (out / "morphology_focus").mkdir()
    height, width = (int(side) // 4 + 200 for side in in_focus.max(axis=0)[::-1])
    stains = rng.integers(0, 4000, (4, height, width), dtype=np.uint16)
    for i in range(len(stains)):  # the first names the others, and is read with them
        file = out / f"morphology_focus/morphology_focus_{i:04}.ome.tif"
        tifffile.imwrite(file, stains if i == 0 else stains[i], metadata={"axes": "CYX" if i == 0 else "YX"})
    if he:
        tifffile.imwrite(out / "slide_he_image.ome.tif", picture, photometric="rgb", metadata={"axes": "YXS"})
        np.savetxt(out / "slide_he_imagealignment.csv", alignment, delimiter=",")
    return um, in_he


def _write_outlines(out: Path, ids: NDArray[np.str_], um: NDArray[np.float64], half: NDArray[np.float64]) -> None:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    vertices = (um[:, None] + corners * half[:, None, None]).reshape(-1, 2)
    for kind in ("cell", "nucleus"):
        pd.DataFrame({
            "cell_id": np.repeat(ids, 5), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1],
            "label_id": np.repeat(np.arange(1, len(ids) + 1), 5),
        }).to_parquet(out / f"{kind}_boundaries.parquet")  # fmt: skip


def _write_cells(path: Path, prefix: NDArray[np.uint32], in_focus: NDArray[np.float64]) -> None:
    n = len(prefix)
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.column_stack([prefix, np.ones(n, np.uint32)]))
        columns = [
            "cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y", "nucleus_area",
            "z_level", "nucleus_count",
        ]  # fmt: skip
        summary = np.column_stack([in_focus, np.zeros((n, len(columns) - 2))])
        group.create_array("cell_summary", data=summary, attributes={"column_names": columns})
        labels = np.zeros(np.ceil(in_focus.max(axis=0)[::-1]).astype(int) + 1, np.uint32)
        labels[tuple(in_focus.astype(int)[:, ::-1].T)] = np.arange(1, n + 1)
        for mask in ("0", "1"):
            group.create_array(f"masks/{mask}", data=labels)
            group.create_array(f"polygon_sets/{mask}/cell_index", data=np.arange(n, dtype=np.uint32))


def legacy(out: Path, sections: dict[str, str], *, real: bool = False) -> None:
    """Text files and scans as the first spatial transcriptomics were published: counts by "x × y", positions, a jpg.

    Sections are real ones (at their full resolution), or numbers of drawn ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        counts, spots, he = (out / f"{name}_{what}" for what in ("counts.tsv.gz", "spots.tsv", "HE.jpg"))
        if real:
            data = require("her2st", "data")
            counts.symlink_to(data / f"ST-cnts/{section}.tsv.gz")
            spots.symlink_to(data / f"ST-spotfiles/{section}_selection.tsv")
            he.symlink_to(next((data / f"ST-imgs/{section[0]}/{section}").glob("*.jpg")))
            continue
        picture, measured, centers = drawn(int(section), n_spots=150, n_genes=30)
        pitch = 200 / UM_PER_PX
        sites = np.array([(x, y) for x in range(7) for y in range(7)])
        xy = np.round(130.25 + sites * pitch, 2)
        inside = (xy < np.array(picture.shape[1::-1]) - 130).all(axis=1)
        sites, xy = sites[inside], xy[inside]
        nearest = cKDTree(centers).query(xy)[1]
        names = pd.Index([f"{x}x{y}" for x, y in sites])
        measured.iloc[nearest].astype(int).set_axis(names).to_csv(counts, sep="\t")
        pd.DataFrame(np.column_stack([sites, xy]), columns=["x", "y", "pixel_x", "pixel_y"]).astype(
            {"x": int, "y": int}
        ).to_csv(spots, sep="\t", index=False)
        Image.fromarray(picture).save(he, quality=95)
