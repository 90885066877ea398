"""The same slides, written in every way that SpatialData allows: crops, model and predictions are the same.

Elements, names, dtypes, orders, transformations and what else lies in the object are drawn at random; nothing of it may
matter, and nothing of the user's may change.
"""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from shapely import Polygon, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence

import stcontrast as stc
from tests.synthetic import smooth_picture

SIDE, N_SPOTS, N_GENES = 128, 16, 6
UM_PER_PX = 2.0
HOW: dict[str, Any] = {"field_um": 40.0, "size_px": 8}
NAMES = ("one", "two")
AXES = ("x", "y")
RNG = np.random.default_rng(0)
PIXELS = {name: smooth_picture(SIDE + 8 * i)[:SIDE, :SIDE] for i, name in enumerate(NAMES)}
CENTERS = {name: RNG.uniform(12, SIDE - 12, (N_SPOTS, 2)) for name in NAMES}
COUNTS = {name: RNG.poisson(6, (N_SPOTS, N_GENES)).astype(np.float32) + 1 for name in NAMES}
GENES = [f"GENE{i}" for i in range(N_GENES)]

as_image = {
    "uint8": lambda pixels: pixels,
    "uint16": lambda pixels: pixels.astype(np.uint16) * 257,
    "float": lambda pixels: pixels.astype(np.float32) / 255,
    "float to 255": lambda pixels: pixels.astype(np.float64),
    "RGBA": lambda pixels: np.dstack([pixels, np.full(pixels.shape[:2], 255, dtype=np.uint8)]),
}
as_counts = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": np.asarray,
    "int32": lambda counts: counts.astype(np.int32),
    "int64 csr": lambda counts: sparse.csr_matrix(counts.astype(np.int64)),
    "float64": lambda counts: counts.astype(np.float64),
}
as_ids = {
    "int64": lambda ids: ids,
    "int32": lambda ids: ids.astype(np.int32),
    "uint32": lambda ids: ids.astype(np.uint32),
    "far apart": lambda ids: ids * 1000 + 7,
    "text": lambda ids: np.array([f"AAAC{i}-1" for i in ids], dtype=object),
    "numbers as text": lambda ids: ids.astype(str).astype(object),
}

written = st.fixed_dictionaries(
    {
        "image": st.sampled_from(sorted(as_image)),
        "channels": st.permutations([0, 1, 2]),
        "chunks": st.sampled_from([31, 64, 500]),
        "scale_factors": st.sampled_from([None, [2], [2, 2]]),
        "counts": st.sampled_from(sorted(as_counts)),
        "ids": st.sampled_from(sorted(as_ids)),
        "geometry": st.sampled_from(["circles", "squares", "hexagons"]),
        "system": st.sampled_from(["global", "um", "sample 1", "aligned"]),
        "turn": st.sampled_from([0.0, 0.3, np.pi / 2, np.pi]),
        "scale": st.sampled_from([1.0, 0.25, 40.0]),
        "mirrored": st.booleans(),
        "shift": st.sampled_from([(0.0, 0.0), (-300.0, 17.5)]),
        "own_scale": st.sampled_from([1.0, 0.5]),
        "rows": st.integers(0, 10),
        "shapes": st.integers(0, 10),
        "not_annotated": st.integers(0, 3),
        "slides": st.permutations(NAMES),
        "region": st.sampled_from(["region", "sample"]),
        "instance": st.sampled_from(["instance_id", "spot_id"]),
        "unused_category": st.booleans(),
        "donor": st.sampled_from(["text", "category", "number"]),
        "others": st.sets(st.sampled_from(["points", "labels", "table", "fluorescence", "shapes"])),
    }
)  # fmt: skip


def plain() -> dict[str, Any]:
    return {
        "image": "uint8", "channels": [0, 1, 2], "chunks": 500, "scale_factors": None, "counts": "csr", "ids": "int64",
        "geometry": "circles", "system": "global", "turn": 0.0, "scale": 1.0, "mirrored": False, "shift": (0.0, 0.0),
        "own_scale": 1.0, "rows": None, "shapes": None, "not_annotated": 0, "slides": NAMES, "region": "region",
        "instance": "instance_id", "unused_category": False, "donor": "text", "others": set(),
    }  # fmt: skip


def permutation(n: int, seed: int | None) -> np.ndarray:
    return np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)


def shapes_of(how: dict[str, Any], name: str, to_system: Affine) -> tuple[Any, np.ndarray]:
    """Shapes of a slide, some of them annotated by no row; and the ids of the spots."""
    n = N_SPOTS + how["not_annotated"]
    ids = as_ids[how["ids"]](np.arange(n))
    beyond = np.full((how["not_annotated"], 2), 20.0)
    # the shapes have units of their own; their transformation goes back to pixels first
    centers = np.vstack([CENTERS[name], beyond]) * how["own_scale"]
    order, radius = permutation(n, how["shapes"]), 5.0 * how["own_scale"]
    way = {how["system"]: Sequence([Scale([1 / how["own_scale"]] * 2, axes=AXES), to_system])}
    index = pd.Index(ids[order])
    if how["geometry"] == "circles":
        return ShapesModel.parse(centers[order], geometry=0, radius=radius, index=index, transformations=way), ids
    from geopandas import GeoDataFrame

    # as wide as the circles are
    corner = np.exp(1j * np.pi * np.arange(6) / 3) * radius * np.sqrt(2 * np.pi / (3 * np.sqrt(3)))
    outlines = [
        box(x - radius, y - radius, x + radius, y + radius)
        if how["geometry"] == "squares"
        else Polygon(np.column_stack([x + corner.real, y + corner.imag]))
        for x, y in centers[order]
    ]
    return ShapesModel.parse(GeoDataFrame(geometry=outlines, index=index), transformations=way), ids


def image_of(how: dict[str, Any], name: str, to_system: Affine) -> Any:
    pixels = as_image[how["image"]](PIXELS[name])
    names = ["r", "g", "b", "a"][: pixels.shape[-1]]
    order = [*how["channels"], *range(3, pixels.shape[-1])]
    return Image2DModel.parse(
        np.moveaxis(pixels[..., order], -1, 0), dims=("c", "y", "x"), c_coords=[names[i] for i in order],
        scale_factors=how["scale_factors"], chunks=(1, how["chunks"], how["chunks"]),
        transformations={how["system"]: to_system},
    )  # fmt: skip


def made(how: dict[str, Any]) -> SpatialData:
    cosine, sine = how["scale"] * np.cos(how["turn"]), how["scale"] * np.sin(how["turn"])
    flip = -1 if how["mirrored"] else 1
    (x, y) = how["shift"]
    to_system = Affine(
        [[cosine, -sine * flip, x], [sine, cosine * flip, y], [0, 0, 1]], input_axes=AXES, output_axes=AXES
    )
    images, shapes, parts = {}, {}, []
    for name in how["slides"]:
        images[f"{name}_he"] = image_of(how, name, to_system)
        shapes[name], ids = shapes_of(how, name, to_system)
        donor: Any = NAMES.index(name) if how["donor"] == "number" else name
        obs = pd.DataFrame(
            {how["region"]: name, how["instance"]: ids[:N_SPOTS], "patient": donor},
            index=[f"{name}_{i}" for i in range(N_SPOTS)],
        )
        parts.append(AnnData(COUNTS[name], obs=obs, var=pd.DataFrame(index=GENES)))
    import anndata as ad

    joined = ad.concat(parts)[permutation(2 * N_SPOTS, how["rows"])].copy()
    joined.X = as_counts[how["counts"]](np.asarray(joined.X))
    categories = [*NAMES, "gone"] if how["unused_category"] else list(NAMES)
    joined.obs[how["region"]] = pd.Categorical(joined.obs[how["region"]], categories=categories)
    if how["donor"] == "category":
        joined.obs["patient"] = joined.obs["patient"].astype("category")
    joined.uns["stcontrast"] = {"um_per_px": dict.fromkeys(NAMES, UM_PER_PX)}
    tables = {
        "table": TableModel.parse(joined, region=list(NAMES), region_key=how["region"], instance_key=how["instance"])
    }
    return SpatialData.init_from_elements({**images, **shapes, **tables, **others_of(how)})


def others_of(how: dict[str, Any]) -> dict[str, Any]:
    """Elements that are nothing of ours."""
    here = {how["system"]: Identity()}
    every = {
        "points": lambda: PointsModel.parse(
            pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "gene": pd.Categorical(["a", "b"])}),
            coordinates={"x": "x", "y": "y"}, feature_key="gene", transformations=here,
        ),
        "labels": lambda: Labels2DModel.parse(np.ones((20, 20), dtype=np.int32), dims=("y", "x"), transformations=here),
        "fluorescence": lambda: Image2DModel.parse(
            np.zeros((2, 200, 200), dtype=np.uint16), dims=("c", "y", "x"), c_coords=["DAPI", "18S"], transformations=here
        ),
        "shapes": lambda: ShapesModel.parse(np.ones((3, 2)), geometry=0, radius=1.0, transformations=here),
    }  # fmt: skip
    found = {f"other_{name}": every[name]() for name in sorted(how["others"] - {"table"})}
    if "table" in how["others"]:
        found["other_table"] = TableModel.parse(AnnData(np.ones((4, 2))))
    return found


def content(sdata: SpatialData) -> dict[str, str]:
    table = sdata["table"]
    return {
        "elements": joblib.hash(sorted(name for _, name, _ in sdata.gen_elements())),
        "X": joblib.hash(table.X), "obs": joblib.hash(table.obs), "var": joblib.hash(table.var),
        **{name: joblib.hash(shapes.to_wkt()) for name, shapes in sdata.shapes.items()},
    }  # fmt: skip


def table_key(how: dict[str, Any]) -> str | None:
    # with two tables the user has to say which
    return "table" if "table" in how["others"] else None


REFERENCE = made(plain())


@given(how=written)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_crops_do_not_depend_on_how_slides_are_written(how: dict[str, Any]) -> None:
    expected = dict(zip(REFERENCE["table"].obs_names, stc.pp.crops(REFERENCE, **HOW).astype(int), strict=True))
    sdata = made(how)
    before = content(sdata)
    found = stc.pp.crops(sdata, table_key=table_key(how), **HOW)
    assert content(sdata) == before
    for name, crop in zip(sdata["table"].obs_names, found, strict=True):
        # a stored level has grey values of its own, and rounds them
        assert np.abs(crop - expected[name]).max() <= (1 if how["scale_factors"] is None else 8)


@given(how=written)
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_models_do_not_depend_on_how_slides_are_written(how: dict[str, Any]) -> None:
    found = {}
    for key, one in (("plain", plain()), ("drawn", how)):
        sdata = made(one)
        before = content(sdata)
        stc.tl.fit(
            sdata,
            batch_key="patient",
            method="ridge",
            encoder="color",
            field_um=40,
            n_neighbors=0,
            table_key=table_key(one),
        )
        after = content(sdata)
        assert {name: after[name] for name in before if name != "elements"} == {
            name: before[name] for name in before if name != "elements"
        }
        predicted = sdata["stc_pred"]
        found[key] = pd.DataFrame(predicted.X, index=predicted.obs_names, columns=predicted.var_names)
    drawn = found["drawn"].reindex_like(found["plain"])
    np.testing.assert_allclose(drawn, found["plain"], atol=0.02)


@pytest.mark.slow
@given(how=written)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_many_ways_to_write_slides(how: dict[str, Any]) -> None:
    test_crops_do_not_depend_on_how_slides_are_written.hypothesis.inner_test(how)  # type: ignore[attr-defined]
