"""The table of spots: everything that is known of the spots of all slides, as arrays with one row a spot."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import sparse

from stcontrast._data.design import block_of_column, build_design
from stcontrast._slides import rows_by_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data.design import Standardize

__all__ = ["Prediction", "Spots", "log_normalize", "log_normalize_sparse"]

# what does not have one row a spot
SHARED = ("slides", "genes", "classes", "blocks", "gene_side")


def log_normalize(counts: sparse.csr_matrix, total: NDArray[np.float64]) -> NDArray[np.float32]:
    """log(1 + counts per 10 000), with the depth of the full library.

    Parameters
    ----------
    counts
        Raw counts (n_spots, n_genes) of the genes asked for.
    total
        Counts of every spot over all its genes (n_spots,), not only those asked for.

    Returns
    -------
    Dense expression (n_spots, n_genes); zeros where a spot has no counts at all.
    """
    return log_normalize_sparse(counts, total).toarray()


def log_normalize_sparse(counts: sparse.csr_matrix, total: NDArray[np.float64]) -> sparse.csr_matrix:
    """As :func:`log_normalize`, sparse: for all the genes of a table."""
    normalized = sparse.csr_matrix(sparse.diags_array(1e4 / np.maximum(total, 1.0)) @ counts)
    normalized.data = np.log1p(normalized.data, dtype=np.float32)
    return normalized


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Spots of all slides, one under another.

    What is absent is an array without columns, or a row of zeros: a method that predicts is given spots without counts,
    depth and labels.

    Attributes
    ----------
    slide
        Index of the slide of each spot (n_spots,), into `slides`.
    xy
        Centres (n_spots, 2), comparable within a slide.
    features
        Image features (n_spots, n_features), as the encoder makes them.
    design
        What a method sees of the image (n_spots, n_design): features of a spot and its neighbours, standardised.
    name, donor, batch
        Name, donor and batch of each spot (n_spots,).
    counts
        Raw counts (n_spots, n_genes), empty rows where a spot is not measured.
    depth
        Counts of each spot over its full library (n_spots,); 0 where it is not measured.
    observed
        log(1 + counts per 10 000) as measured (n_spots, n_genes): what predictions are scored against.
    target
        What a method learns (n_spots, n_genes): `observed`, or what was made of it.
    label
        Index of the class of each spot (n_spots,), into `classes`; -1 where it is not annotated.
    slides, genes, classes
        Names of the slides, the genes and the classes.
    blocks
        Widths of the blocks of `features`, such as those of several encoders; empty where all are one block.
    gene_side
        Spots with counts and no image, which the gene space learns from too; `None` where there are none.
    """

    slide: NDArray[np.int64]
    xy: NDArray[np.float64]
    features: NDArray[np.float32]
    design: NDArray[np.float32]
    name: NDArray[np.str_]
    donor: NDArray[np.str_]
    batch: NDArray[np.str_]
    counts: sparse.csr_matrix
    depth: NDArray[np.float64]
    observed: NDArray[np.float32]
    target: NDArray[np.float32]
    label: NDArray[np.int64]
    slides: Sequence[str]
    genes: Sequence[str]
    classes: Sequence[str]
    blocks: Sequence[int]
    gene_side: Spots | None = None

    @classmethod
    def of(cls, slide: NDArray[np.int64], xy: NDArray[np.float64], **known: Any) -> Self:
        """Spots at these places, with what is known of them; by default nothing, all of one donor and batch."""
        n = len(slide)
        nothing, unnamed = np.zeros((n, 0), dtype=np.float32), np.zeros(n, dtype=np.str_)
        absent = {
            "features": nothing, "design": nothing, "name": unnamed, "donor": unnamed, "batch": unnamed,
            "counts": sparse.csr_matrix((n, 0), dtype=np.float32), "depth": np.zeros(n), "observed": nothing,
            "target": nothing, "label": np.full(n, -1), "slides": (), "genes": (), "classes": (),
            "blocks": (),
        }  # fmt: skip
        return cls(slide=slide, xy=xy, **(absent | known))

    def __len__(self) -> int:
        return len(self.slide)

    def __sizeof__(self) -> int:
        # dask looks at it: what is large is sent to a cluster once, and not with every task
        arrays = [getattr(self, item.name) for item in fields(self) if item.name not in (*SHARED, "counts")]
        counts = (self.counts.data, self.counts.indices, self.counts.indptr)
        gene_side = 0 if self.gene_side is None else self.gene_side.__sizeof__()
        return sum(array.nbytes for array in (*arrays, *counts)) + gene_side

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """Whether a spot has counts (n_spots,)."""
        return self.depth > 0

    @cached_property
    def has_counts(self) -> bool:
        """Whether any spot has counts."""
        return bool(self.measured.any())

    @cached_property
    def has_labels(self) -> bool:
        """Whether any spot is annotated."""
        return bool((self.label >= 0).any())

    @property
    def n_genes(self) -> int:
        """Number of genes in `target`."""
        return self.target.shape[1]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @cached_property
    def column_weights(self) -> NDArray[np.float32]:
        """Factor of every column of `design` (n_design,) that gives all blocks the same weight, whatever their width.

        The squares have the same sum in every block, and the mean 1. All are 1 where there is one block.
        """
        n_design = self.design.shape[1]
        if len(self.blocks) < 2 or not n_design:
            return np.ones(n_design, dtype=np.float32)
        # with neighbours there are more columns than features
        block = block_of_column(self.blocks, n_design - sum(self.blocks))
        share = n_design / len(self.blocks)
        return np.sqrt(share / np.bincount(block)[block]).astype(np.float32)

    def take(self, rows: NDArray[np.intp]) -> Self:
        """Some of the spots, in this order; all of them in order share the arrays."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        parts = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SHARED}
        taken = {name: part[rows] for name, part in parts.items() if name != "target"}
        # most often the target is what was measured, and one array serves for both
        taken["target"] = taken["observed"] if self.target is self.observed else self.target[rows]
        return replace(self, **taken)

    def in_order(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The same rows in an order that does not depend on the user's: by name of the slide, name of the spot, place."""
        slide = self.slide[rows]
        # (a table without names of slides has their codes alone)
        rank = np.argsort(np.argsort(self.slides, kind="stable"))[slide] if len(self.slides) else slide
        x, y = self.xy[rows].T
        return rows[np.lexsort((y, x, self.name[rows], rank))]

    def with_slides_in_order(self) -> Self:
        """The same spots with slides numbered by their names."""
        order = np.argsort(self.slides, kind="stable")
        rank = np.argsort(order)
        gene_side = None
        if self.gene_side is not None:
            gene_side = self.gene_side.take(
                self.gene_side.in_order(np.arange(len(self.gene_side)))
            ).with_slides_in_order()
        return replace(self, slide=rank[self.slide], slides=[self.slides[i] for i in order], gene_side=gene_side)

    def with_image_and_counts(self) -> Self:
        """The spots with counts, without the gene side; the same object's arrays where all have counts."""
        alone = replace(self, gene_side=None)
        return alone if self.measured.all() else alone.take(np.flatnonzero(self.measured))

    def without_features(self) -> Self:
        """The same spots without the image features that their design was made of."""
        return replace(self, features=self.features[:, :0])

    def without_design(self) -> Self:
        """The same spots without design, for what looks at the genes alone."""
        return replace(self, design=self.design[:, :0])

    def unseen(self, *, depth: bool = False) -> Self:
        """The same spots without anything that was measured or annotated: what a method may see when it predicts.

        Parameters
        ----------
        depth
            Whether the measured depth stays, for an oracle.
        """
        known = {"features": self.features, "design": self.design, "blocks": self.blocks}
        return type(self).of(self.slide, self.xy, **known, **({"depth": self.depth} if depth else {}))

    def with_genes(self, columns: NDArray[np.intp]) -> Self:
        """The same spots with some of the genes, their expression as measured as target."""
        counts = self.counts[:, columns]
        expression = log_normalize(counts, self.depth)
        genes = [self.genes[i] for i in columns]
        gene_side = None if self.gene_side is None else self.gene_side.with_genes(columns)
        return replace(self, counts=counts, genes=genes, observed=expression, target=expression, gene_side=gene_side)

    def without_donors(self, donors: NDArray[np.str_]) -> Self:
        """The same spots, their gene side without these donors: what a held-out donor leaves."""
        if self.gene_side is None:
            return self
        left = np.flatnonzero(~np.isin(self.gene_side.donor, donors))
        return replace(self, gene_side=self.gene_side.take(left) if len(left) else None)

    def with_counts(self) -> Self:
        """All spots with counts, with an image or without, for what learns from the genes alone."""
        here = self.with_image_and_counts()
        if self.gene_side is None:
            return here
        both = (here, self.gene_side)
        after = len(self.slides) or int(self.slide.max(initial=-1)) + 1
        joined = {
            name: np.concatenate([getattr(part, name) for part in both])
            for name in ("xy", "name", "donor", "batch", "depth", "observed", "target", "label")
        }
        slide = np.concatenate([here.slide, self.gene_side.slide + after])
        counts = sparse.csr_matrix(sparse.vstack([part.counts for part in both], format="csr"))
        slides = [*here.slides, *self.gene_side.slides]
        known = {"genes": here.genes, "classes": here.classes, "slides": slides, "counts": counts}
        return type(self).of(slide, joined.pop("xy"), **joined, **known)

    def with_classes(self, classes: Sequence[str]) -> Self:
        """The same spots with labels among these classes; a label of another class is taken away."""
        index = {name: i for i, name in enumerate(classes)}
        of_old = np.array([*(index.get(name, -1) for name in self.classes), -1], dtype=np.int64)
        gene_side = None if self.gene_side is None else self.gene_side.with_classes(classes)
        return replace(self, label=of_old[self.label], classes=list(classes), gene_side=gene_side)

    def with_design(self, *, n_neighbors: int, standardize: Standardize) -> Self:
        """The same spots with the design made of their features."""
        design = build_design(
            self.features, self.slide, self.xy, blocks=self.blocks, n_neighbors=n_neighbors, standardize=standardize
        )
        return replace(self, design=design)

    @property
    def known_classes(self) -> list[str]:
        """Classes that some spot has, in alphabetical order."""
        return sorted(self.classes[i] for i in np.unique(self.label[self.label >= 0]))

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of the measured spots (n_measured, k) over all spots (n_spots, k), NaN in the others."""
        spread = np.full((len(self), values.shape[1]), np.nan, dtype=np.float32)
        spread[self.measured] = values
        return spread

    def level_target(self) -> NDArray[np.float32]:
        """Target with every slide brought to the mean over slides (n_spots, n_genes), for spots with counts."""
        mean, of_spot = self.slide_means()
        return self.target - of_spot + mean

    def slide_means(self, values: NDArray[np.float32] | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean expression of every gene over its slides (n_genes,), and of its own slide for every spot.

        Slides count alike, whatever their size. Rows of spots without counts are zero.

        Parameters
        ----------
        values
            Expression (n_spots, n_genes); `target` by default.
        """
        values = self.target if values is None else values
        of_spot = np.zeros_like(values)
        means = []
        for rows in rows_by_slide(self.slide, np.flatnonzero(self.measured)):
            means.append(values[rows].mean(axis=0))
            of_spot[rows] = means[-1]
        return np.mean(means, axis=0, dtype=np.float32), of_spot


@dataclass(slots=True, kw_only=True)
class Prediction:
    """What a model predicts of some spots.

    Attributes
    ----------
    expression
        log(1 + counts per 10 000) (n_spots, n_genes); NaN in spots that were not predicted. No columns for a model
        without counts.
    proba
        Probability of every class (n_spots, n_classes); NaN likewise. No columns for a model without labels.
    half_width
        Half the width of every gene's interval (n_genes,); infinite where nothing is known of it.
    in_distribution
        Whether a spot looks like those of the training slides (n_spots,).
    """

    expression: NDArray[np.float32]
    proba: NDArray[np.float32]
    half_width: NDArray[np.float32]
    in_distribution: NDArray[np.bool_]

    @classmethod
    def empty(cls, n_spots: int, *, n_genes: int, n_classes: int) -> Self:
        """Nothing predicted yet."""
        return cls(
            expression=np.full((n_spots, n_genes), np.nan, dtype=np.float32),
            proba=np.full((n_spots, n_classes), np.nan, dtype=np.float32),
            half_width=np.full(n_genes, np.inf, dtype=np.float32),
            in_distribution=np.ones(n_spots, dtype=np.bool_),
        )

    @property
    def lower(self) -> NDArray[np.float32]:
        """Lower end of the interval (n_spots, n_genes), not below 0."""
        return np.maximum(self.expression - self.half_width, 0.0)

    @property
    def upper(self) -> NDArray[np.float32]:
        """Upper end of the interval (n_spots, n_genes)."""
        return self.expression + self.half_width
