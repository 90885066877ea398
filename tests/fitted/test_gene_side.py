"""Slides with counts and no image, from the table of spots to a fitted model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stcontrast.fitted._fit import FitSpec, fit_model, training_spots
from tests.methods.synthetic import training_data, with_gene_side

if TYPE_CHECKING:
    from stcontrast.methods import Spots


@pytest.fixture
def spots() -> Spots:
    """Donors 0 to 2 with an image; donors 0 and 3 with a slide on the gene side."""
    data = training_data(donors=4, slides=2, n_spots=20, n_genes=8)
    return with_gene_side(data.take(np.flatnonzero(~np.isin(data.slide, [3, 5, 6]))), 1, 7)


def test_a_donor_that_is_held_out_leaves_the_gene_side(spots):
    rows = np.flatnonzero(spots.donor != "0")
    train = training_spots(spots, rows, FitSpec())
    assert set(train.donor) == {"1", "2"}
    assert set(train.gene_side.donor) == {"3"}
    # one that has no spots to predict stays
    train = training_spots(spots, np.flatnonzero(spots.donor != "1"), FitSpec())
    assert set(train.gene_side.donor) == {"0", "3"}


def test_genes_and_classes_are_those_of_the_spots_with_an_image(spots):
    rows = np.flatnonzero(spots.donor != "1")
    train = training_spots(spots, rows, FitSpec(n_genes=5))
    wild = replace(spots, gene_side=replace(spots.gene_side, counts=spots.gene_side.counts[:, ::-1]))
    other = training_spots(wild, rows, FitSpec(n_genes=5))
    assert train.genes == other.genes == train.gene_side.genes
    assert train.n_genes == train.gene_side.n_genes == train.gene_side.target.shape[1] == 5
    assert train.classes == train.gene_side.classes


@pytest.mark.parametrize("method", ["ridge", "stcontrast"])
def test_the_spec_names_its_slides_where_a_method_learns_from_them(spots, method):
    options = {"max_epochs": 1} if method == "stcontrast" else {}
    rows = np.arange(len(spots))
    spec = FitSpec(n_neighbors=0, standardize="none", options=options)
    model, train = fit_model(spots, rows, method=method, fit_spec=spec, made_by=[])
    assert model.spec["gene_side"] == (["slide1", "slide7"] if method == "stcontrast" else [])
    assert set(model.spec["slides"]) == {"slide0", "slide2", "slide4"}
    assert (train.gene_side is None) == (method == "ridge")
    without, _ = fit_model(replace(spots, gene_side=None), rows, method=method, fit_spec=spec, made_by=[])
    assert without.spec["gene_side"] == []
    same = np.array_equal(
        model.method.predict_expression(train.unseen()), without.method.predict_expression(train.unseen())
    )
    assert same == (method == "ridge")
