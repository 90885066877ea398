"""What readers bring, from objects to predictions: spacing of the spots, images of an AnnData, labels, names."""

from __future__ import annotations

from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel
from spatialdata.transformations import Identity

import stcontrast as stc
from tests.synthetic import circles, hexagonal, image, picture, square, table

FAST: dict[str, Any] = {"method": "ridge", "encoder": "color", "field_um": 100}
GENES = [f"g{i}" for i in range(8)]


def counts(n: int, seed: int) -> csr_matrix:
    return csr_matrix(np.random.default_rng(seed).poisson(3.0, (n, len(GENES))).astype(np.float32))


def array_slide(
    name: str, *, pitch_um: float = 100.0, sites: Any = hexagonal, seed: int = 0, share: float = 1.0
) -> SpatialData:
    """One slide of an array at 4 µm per pixel."""
    pitch = pitch_um / 4.0
    xy = pitch + sites(6, 6, pitch)
    xy = xy[np.random.default_rng(seed).random(len(xy)) < share]
    here = {name: Identity()}
    annotating = table({name: np.arange(len(xy))}, um_per_px=4.0)
    measured = ad.AnnData(
        counts(len(xy), seed), obs=annotating.obs.assign(donor=name), var=pd.DataFrame(index=GENES), uns=annotating.uns
    )
    high, wide = (xy.max(axis=0) + pitch).astype(int)[::-1]
    return SpatialData(
        images={f"{name}_he": image(picture(high, wide, seed=seed), here)},
        shapes={name: circles(xy, here, radius=0.3 * pitch)}, tables={"table": measured},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> stc.models.Predictor:
    return stc.tl.fit([array_slide(f"s{i}", seed=i) for i in range(3)], batch_key="donor", **FAST)


@pytest.mark.situation(
    "Prediction", "Spots are much denser or sparser than those of training", "warning", "neighbouring spots are"
)
@pytest.mark.parametrize(
    ("pitch_um", "sites", "share", "said"),
    [
        (100.0, hexagonal, 1.0, None), (100.0, square, 0.6, None), (110.0, square, 1.0, None),
        (200.0, square, 1.0, "neighbouring spots are 200 µm apart, and 100 µm on"),
        (40.0, square, 1.0, "neighbouring spots are 40 µm apart"),
    ],
    ids=["the same", "holes", "nearly", "twice", "0.4"],
)  # fmt: skip
def test_spots_of_another_spacing_are_warned_of(
    model: stc.models.Predictor, pitch_um: float, sites: Any, share: float, said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    new = array_slide("new", pitch_um=pitch_um, sites=sites, seed=9, share=share)
    stc.tl.predict_expression(new, model)
    assert ("neighbouring spots are" in caplog.text) is (said is not None)
    assert (said or "") in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "Spots of the training slides are of two sizes", "warning", "Neighbouring spots are"
)
@pytest.mark.parametrize("pitch_um", [8.0, 66.0, 155.0, 200.0], ids=lambda pitch: f"{pitch:g} and 100 µm")
@pytest.mark.parametrize("learn", [stc.tl.fit, stc.tl.cross_validate], ids=["fit", "cross_validate"])
def test_training_spots_of_two_sizes(learn: Any, pitch_um: float, caplog: pytest.LogCaptureFixture) -> None:
    slides = [array_slide("a", seed=1), array_slide("b", pitch_um=pitch_um, seed=2), array_slide("c", seed=3)]
    how = (
        FAST
        if learn is stc.tl.fit
        else {"methods": ["mean"], "n_jobs": 1, **{k: v for k, v in FAST.items() if k != "method"}}
    )
    learn(slides, donor_key="donor", **how)
    of_b = (
        f"{pitch_um:g} µm on slide 'b'"
        if pitch_um > 100
        else f"Neighbouring spots are {pitch_um:g} µm apart on slide 'b'"
    )
    assert "Neighbouring spots are" in caplog.text
    assert of_b in caplog.text


def test_training_spots_of_nearly_one_size(caplog: pytest.LogCaptureFixture) -> None:
    stc.tl.fit([array_slide("a", seed=1), array_slide("b", pitch_um=140.0, seed=2)], donor_key="donor", **FAST)
    assert "Neighbouring spots are" not in caplog.text


def test_the_spacing_is_kept_with_the_model(model: stc.models.Predictor, tmp_path: Any) -> None:
    model.save(tmp_path / "model")
    assert stc.models.load(tmp_path / "model").spec["spot_distance_um"] == pytest.approx(100.0)


def visium(seed: int, library: str, n: int = 8) -> ad.AnnData:
    """As `squidpy.read.visium` brings it: the hires image alone, a fifth of the full resolution."""
    xy = 100 + hexagonal(n, n, 100.0)
    return ad.AnnData(
        counts(len(xy), seed),
        obs=pd.DataFrame({"donor": library, "library_id": pd.Categorical([library] * len(xy))}, index=[f"{library}{i}" for i in range(len(xy))]),
        var=pd.DataFrame(index=GENES), obsm={"spatial": xy},
        uns={"spatial": {library: {
            "images": {"hires": picture(200, 220, seed=seed).astype(np.float32) / 255},
            "scalefactors": {"tissue_hires_scalef": 0.2, "spot_diameter_fullres": 65.0},
            "metadata": {"chemistry_description": "custom"},
        }}},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::FutureWarning")  # of squidpy
def test_a_prediction_of_an_anndata_can_be_plotted(caplog: pytest.LogCaptureFixture) -> None:
    slides = [visium(i, f"L{i}") for i in range(3)]
    model = stc.tl.fit(slides[:2], batch_key="donor", **FAST | {"field_um": 200})
    assert "only the hires image 'L0/hires' is there, 5 µm per pixel" in caplog.text
    both = ad.concat(slides[1:], uns_merge="unique")
    predicted = stc.tl.predict_expression(both, model, donor_key="donor")
    assert isinstance(predicted, ad.AnnData)
    assert sorted(predicted.uns["spatial"]) == ["L1", "L2"]
    np.testing.assert_array_equal(predicted.obs["library_id"], both.obs["library_id"])
    sq.pl.spatial_scatter(predicted, color="g1", library_key="library_id", img_res_key="hires")
    stc.pl.spatial_pred(predicted, "g1", show=False)
    plt.close("all")
    # the user's images, not copies; a new dict does not touch the user's
    kept = predicted.uns["spatial"]["L2"]
    assert kept["images"]["hires"] is both.uns["spatial"]["L2"]["images"]["hires"]
    del kept["metadata"]
    assert "metadata" in both.uns["spatial"]["L2"]


def test_cells_that_annotate_labels_are_predicted(model: stc.models.Predictor) -> None:
    new = array_slide("cell_circles", seed=9)
    expected = array_slide("cell_circles", seed=9)
    new.labels["cell_labels"] = Labels2DModel.parse(
        np.zeros((99, 99), np.int32), dims=("y", "x"), transformations={"cell_circles": Identity()}
    )
    new["table"].obs["region"] = pd.Categorical(["cell_labels"] * new["table"].n_obs)
    new["table"].uns["spatialdata_attrs"]["region"] = "cell_labels"
    stc.tl.predict_expression(new, model, um_per_px=4.0)
    stc.tl.predict_expression(expected, model)
    np.testing.assert_array_equal(new["stc_pred"].X, expected["stc_pred"].X)
    assert set(new["stc_pred"].obs["region"]) == {"cell_labels"}


@pytest.mark.situation("Tables, shapes and images", "Two objects have shapes of one name", "error", "share a name")
def test_objects_with_one_name_say_how_to_join_them() -> None:
    with pytest.raises(ValueError, match=r"share a name: \['s'\].*`spatialdata.concatenate\(\{'A': a, 'B': b\}"):
        stc.tl.fit([array_slide("s"), array_slide("s", seed=1)], batch_key="donor", **FAST)
