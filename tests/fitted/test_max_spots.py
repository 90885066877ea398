"""More spots than a model is to learn from: which of them it takes, and that they see their whole slide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcontrast.fitted._fit import FitSpec, draw_spots, fit_model
from stcontrast.methods import Spots
from tests.methods.synthetic import training_data, with_gene_side


def table(sizes: list[int], annotated: float = 0.0, seed: int = 0) -> Spots:
    slide = np.repeat(np.arange(len(sizes)), sizes)
    label = np.where(np.random.default_rng(seed).random(len(slide)) < annotated, 0, -1)
    return Spots.of(slide, np.zeros((len(slide), 2)), label=label, classes=["tumour"])


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), n=st.integers(6, 200), seed=st.integers(0, 99))
def test_slides_share_alike_and_small_ones_are_whole(sizes, n, seed):
    spots = table(sizes)
    drawn = draw_spots(spots, np.arange(len(spots)), n, seed=seed)
    assert len(drawn) == min(n, len(spots))
    assert (np.diff(drawn) > 0).all()
    kept = np.bincount(spots.slide[drawn], minlength=len(sizes))
    cut = kept < sizes
    if cut.any():
        assert np.ptp(kept[cut]) <= 1
        # a spot more falls to one of two slides of equal size, which is whole then
        assert kept[~cut].max(initial=0) <= kept[cut].max() + 1


@given(annotated=st.floats(0, 1), n=st.integers(5, 99), seed=st.integers(0, 99))
def test_annotated_spots_come_first_up_to_half(annotated, n, seed):
    spots = table([40, 30, 30], annotated, seed)
    rows = np.random.default_rng(seed).permutation(100)
    drawn = draw_spots(spots, rows, n, seed=seed)
    of_class = np.flatnonzero(spots.label >= 0)
    assert len(drawn) == n
    if len(of_class) <= n // 2:
        assert set(of_class) <= set(drawn)
    # the order of the rows is kept
    assert (np.diff(np.argsort(rows)[drawn]) > 0).all()


def test_every_slide_keeps_a_spot():
    assert set(table([50, 50, 50]).slide[draw_spots(table([50, 50, 50]), np.arange(150), 2, seed=0)]) == {0, 1, 2}


def test_another_seed_draws_other_spots():
    spots = table([50, 50])
    one, same, other = (draw_spots(spots, np.arange(100), 20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


@pytest.fixture
def spots() -> Spots:
    return with_gene_side(training_data(donors=3, slides=2, n_spots=40, n_genes=8), 1)


def fitted(spots: Spots, *, method: str = "ridge", **how):
    spec = FitSpec(n_neighbors=6, n_genes=0, genes=spots.genes, **how)
    return fit_model(spots, np.arange(len(spots)), method=method, fit_spec=spec, made_by=[])


@pytest.mark.parametrize("standardize", ["slide", "none"])
def test_a_drawn_spot_sees_what_it_would_see_among_all(spots, standardize):
    _, everything = fitted(spots, standardize=standardize, max_spots=None)
    model, train = fitted(spots, standardize=standardize, max_spots=60)
    assert (model.spec["n_spots"], model.spec["n_spots_used"]) == (len(spots), 60)
    place = {name: i for i, name in enumerate(zip(everything.slide, everything.name, strict=True))}
    rows = [place[name] for name in zip(train.slide, train.name, strict=True)]
    np.testing.assert_allclose(train.design, everything.design[rows], atol=1e-5)
    np.testing.assert_array_equal(train.target, everything.target[rows])


def test_the_moments_of_the_training_slides_are_those_of_all_their_spots(spots):
    whole, _ = fitted(spots, max_spots=None)
    part, _ = fitted(spots, max_spots=60)
    np.testing.assert_allclose(part.moments.mean, whole.moments.mean, atol=1e-6)
    np.testing.assert_allclose(part.moments.deviation, whole.moments.deviation, atol=1e-6)


def test_what_is_not_drawn_teaches_nothing(spots):
    model, train = fitted(spots, max_spots=60)
    kept = {(spots.slides[code], name) for code, name in zip(train.slide, train.name, strict=True)}
    left = np.array(
        [(spots.slides[code], name) not in kept for code, name in zip(spots.slide, spots.name, strict=True)]
    )
    counts = spots.counts.toarray()
    counts[left] = 50
    wild, _ = fitted(replace(spots, counts=type(spots.counts)(counts)), max_spots=60)
    np.testing.assert_array_equal(
        model.method.predict_expression(train.unseen()), wild.method.predict_expression(train.unseen())
    )


def test_the_gene_side_is_drawn_too(spots):
    _, train = fitted(spots, method="stcontrast", max_spots=10, options={"max_epochs": 1})
    assert len(train.gene_side) == 10


@pytest.mark.parametrize("how", [{"method": "nh2st", "options": {"max_epochs": 1}}, {"complete": True}])
def test_what_looks_around_a_spot_learns_from_all(spots, how, monkeypatch):
    monkeypatch.setattr("stcontrast.fitted._fit.completed", lambda train: train)
    model, train = fitted(spots, max_spots=60, **how)
    assert model.spec["n_spots_used"] == len(train) == len(spots)
