"""Training spots without slides: arrays with a planted signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from stcontrast.methods import Spots


def training_data(
    *,
    donors: int = 3,
    slides: int = 1,
    n_spots: int = 30,
    n_design: int = 6,
    n_genes: int = 5,
    n_classes: int = 2,
    seed: int = 0,
) -> Spots:
    """Spots of some donors; expression and class follow the design, with a shift of every slide."""
    rng = np.random.default_rng(seed)
    n_slides = donors * slides
    n = n_slides * n_spots
    slide = np.repeat(np.arange(n_slides), n_spots)
    design = rng.normal(size=(n, n_design)).astype(np.float32)
    weights = np.random.default_rng(99).normal(size=(n_design, n_genes))
    rate = np.exp(0.4 * design @ weights + 0.3 * rng.normal(size=(n_slides, n_genes))[slide] + 2)
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    expression = np.log1p(counts.toarray()).astype(np.float32)
    return Spots.of(
        slide,
        design=design,
        features=design,
        donor=(slide // slides).astype(str),
        batch=(slide // slides).astype(str),
        xy=rng.uniform(0, 100, (n, 2)),
        counts=counts,
        target=expression,
        observed=expression,
        depth=np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(),
        label=np.digitize(design[:, 0], np.quantile(design[:, 0], np.linspace(0, 1, n_classes + 1)[1:-1])).astype(np.int64),
        classes=[f"class{i}" for i in range(n_classes)],
        genes=[f"gene{i}" for i in range(n_genes)],
        slides=[f"slide{i}" for i in range(n_slides)],
        name=np.array([f"spot{i}" for i in range(n)]),
    )  # fmt: skip


def with_gene_side(data: Spots, *slides: int) -> Spots:
    """The same spots, those of some slides without an image: on the gene side."""
    alone = np.isin(data.slide, slides)
    without_image = data.take(np.flatnonzero(alone))
    nothing = np.zeros((len(without_image), 0), dtype=np.float32)
    without_image = replace(without_image, features=nothing, design=nothing)
    return replace(data.take(np.flatnonzero(~alone)), gene_side=without_image)
