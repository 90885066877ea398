"""A part of a slide: standardised within itself it is no slide, which is said; the training slides' moments help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast.tl import _predict_to_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stcontrast.fitted import StandardizeBy

KINDS = np.array(["fat", "stroma", "tumour"])
MEANS = np.random.default_rng(5).normal(size=(3, 8)) * 3


def whole(name: str, *, seed: int, n: int = 120, stain: float = 0.0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    side = np.ceil(np.sqrt(n))
    xy = np.column_stack([np.arange(n) % side, np.arange(n) // side]) * 100.0
    # bands of tissue
    kind = (xy[:, 1] * 3 // (xy[:, 1].max() + 1)).astype(int)
    obs = pd.DataFrame({"library_id": name, "donor": name, "kind": KINDS[kind]}, index=[f"{name}{i}" for i in range(n)])
    mean = np.full((n, 6), 4.0)
    mean[np.arange(n), kind] = 30
    adata = ad.AnnData(rng.poisson(mean).astype(np.float32), obs=obs)
    features = MEANS[kind] + rng.normal(size=(n, 8)) * 0.5 + stain
    adata.obsm = {"spatial": xy, "X_own": features.astype(np.float32)}
    return adata


def fitted(method: str = "ridge", **arguments: Any) -> stc.models.Predictor:
    slides = [whole(f"s{i}", seed=i, stain=0.3 * i) for i in range(3)]
    keys: dict[str, Any] = {"batch_key": "donor", "label_key": "kind", "use_rep": "X_own"}
    return stc.tl.fit(slides, method=method, **keys, **arguments)


@pytest.fixture(scope="module")
def model() -> stc.models.Predictor:
    return fitted()


BY: tuple[StandardizeBy, ...] = ("slide", "training")
PARTS: list[Any] = [
    pytest.param(
        lambda a: a.obs["kind"] == "tumour", "spread 0.* times as far as on a training slide", id="one tissue"
    ),
    pytest.param(
        lambda a: a.obs["kind"] == "fat", "spread 0.* times as far as on a training slide", id="another tissue"
    ),
    pytest.param(lambda a: np.arange(a.n_obs) < 1, "has 1 spot:", id="one spot"),
    pytest.param(lambda a: np.arange(a.n_obs) % 10 == 0, "has 12 spots:", id="a few spots"),
]


@pytest.mark.situation("Prediction", "Only a few spots, or a part of a slide, are predicted", "warning")
@pytest.mark.parametrize(("choose", "told"), PARTS)
@pytest.mark.parametrize("use", ["predict_expression", "classify", "store"])
def test_a_part_is_warned_of_and_is_right_with_the_moments_of_the_training_slides(
    model: stc.models.Predictor, choose: Callable[[ad.AnnData], Any], told: str, use: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    new = whole("new", seed=9, stain=0.3)
    part = new[np.asarray(choose(new))].copy()

    def run(adata: ad.AnnData, name: str, **arguments: Any) -> np.ndarray:
        if use == "classify":
            stc.tl.classify(adata, model, **arguments)
            return (adata.obs["stc_class"].astype(str) == adata.obs["kind"]).to_numpy()
        store: dict[str, Any] = {"store": tmp_path / f"{name}.zarr"} if use == "store" else {}
        found = stc.tl.predict_expression(adata, model, **arguments, **store)
        assert isinstance(found, ad.AnnData)
        return found.to_df()[["0", "1", "2"]].to_numpy().argmax(axis=1) == np.searchsorted(KINDS, adata.obs["kind"])

    assert run(new.copy(), "whole").mean() > 0.95
    assert "part of a slide" not in caplog.text
    run(part.copy(), "part")
    assert re.search(rf"Slide 'new' .*{told}.*`standardize='training'`", caplog.text)
    caplog.clear()
    assert run(part.copy(), "right", standardize="training").mean() > 0.9
    assert "part of a slide" not in caplog.text


def test_one_tissue_is_wrong_when_standardised_within_itself(model: stc.models.Predictor) -> None:
    """Why it is warned of."""
    new = whole("new", seed=9)
    part = new[new.obs["kind"] == "tumour"].copy()
    stc.tl.classify(part, model)
    assert (part.obs["stc_class"] == "tumour").mean() < 0.7


@pytest.mark.parametrize("rows", [slice(None), slice(0, None, 2), slice(10, 110)], ids=["whole", "half", "cut"])
@pytest.mark.parametrize("stain", [0.0, 40.0])
def test_slides_of_all_tissues_are_not(
    model: stc.models.Predictor, rows: slice, stain: float, caplog: pytest.LogCaptureFixture
) -> None:
    stc.tl.predict_expression(whole("new", seed=9, stain=stain)[rows].copy(), model)
    assert "part of a slide" not in caplog.text


def test_a_model_without_standardisation_has_no_parts(caplog: pytest.LogCaptureFixture) -> None:
    model = fitted(standardize="none")
    part = whole("new", seed=9)[:5].copy()
    one, other = (stc.tl.predict_expression(part, model, standardize=by) for by in BY)
    assert isinstance(one, ad.AnnData)
    assert isinstance(other, ad.AnnData)
    np.testing.assert_array_equal(one.X, other.X)
    assert "part of a slide" not in caplog.text


def test_the_moments_are_saved_and_the_store_has_the_same_numbers(
    model: stc.models.Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_predict_to_store, "CHUNK", 16)
    model.save(tmp_path / "model")
    new = whole("new", seed=9)
    here = stc.tl.predict_expression(new, tmp_path / "model", standardize="training")
    there = stc.tl.predict_expression(new, model, standardize="training", store=tmp_path / "pred.zarr")
    assert isinstance(here, ad.AnnData)
    assert isinstance(there, ad.AnnData)
    np.testing.assert_allclose(there.to_df(), here.to_df(), atol=1e-5)
    # a spot's prediction does not depend on the others, apart from its neighbours
    alone = stc.tl.predict_expression(new[:60].copy(), model, standardize="training")
    assert isinstance(alone, ad.AnnData)
    np.testing.assert_allclose(alone.to_df()[:20], here.to_df()[:20], atol=1e-5)


def test_embeddings_and_matches_of_a_part_too(caplog: pytest.LogCaptureFixture) -> None:
    model = fitted("stcontrast", options={"max_epochs": 3, "n_coordinates": 3})
    new = whole("new", seed=9)
    part = new[new.obs["kind"] == "tumour"].copy()
    calls: list[Callable[..., object]] = [
        lambda **by: stc.tl.embed(part, model, genes=False, **by),
        lambda **by: stc.tl.find_similar(part, model, spots=[0], k=1, **by),
    ]
    for call in calls:
        caplog.clear()
        call()
        assert "spread" in caplog.text
        caplog.clear()
        call(standardize="training")
        assert "spread" not in caplog.text


def test_fit_says_that_a_training_slide_is_small(caplog: pytest.LogCaptureFixture) -> None:
    slides = [whole(f"s{i}", seed=i, n=120 if i else 9) for i in range(3)]
    stc.tl.fit(slides, batch_key="donor", use_rep="X_own", method="mean")
    assert "Slide 's0' has 9 spots" in caplog.text
    assert "Slide 's1'" not in caplog.text


@pytest.mark.situation("Prediction", "A training slide is only a part of one", "warning", "part of a slide")
def test_a_training_slide_that_is_a_part_is_named_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    slides = [whole(f"s{i}", seed=i) for i in range(4)]
    slides[1] = slides[1][slides[1].obs["kind"] == "tumour"].copy()
    model = stc.tl.fit(slides, batch_key="donor", use_rep="X_own", method="ridge")
    assert re.findall(r"Slide '(s\d)' .*part of a slide", caplog.text) == ["s1"]
    caplog.clear()
    new = whole("new", seed=9)
    stc.tl.predict_expression(new[new.obs["kind"] == "tumour"].copy(), model)
    assert "Slide 'new' has image features that spread 0." in caplog.text
