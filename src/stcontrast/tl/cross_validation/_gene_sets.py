"""The genes that a cross-validation scores, chosen anew on the training spots of every fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._data import choose_genes, log_normalize_sparse
from stcontrast._reading import check_named_genes
from stcontrast._slides import rows_by_slide
from stcontrast.metrics._genes import moran, neighbor_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["BUILT_IN", "HIGHLY_VARIABLE", "NAMED", "GeneSets", "parse_gene_sets"]

HIGHLY_VARIABLE: Final = "highly_variable"
HIGHLY_EXPRESSED: Final = "highly_expressed"
SPATIALLY_VARIABLE: Final = "spatially_variable"
BUILT_IN: Final = (HIGHLY_VARIABLE, HIGHLY_EXPRESSED, SPATIALLY_VARIABLE)
NAMED: Final = "genes"
N_AT_ONCE: Final = 256


def parse_gene_sets(
    gene_sets: Sequence[str] | Mapping[str, Sequence[str] | None], *, genes: Sequence[str] | None = None
) -> dict[str, list[str] | None]:
    """Names of the sets, in order, each with the user's own genes or `None` where it is chosen on training spots.

    Parameters
    ----------
    gene_sets
        As given to :func:`stcontrast.tl.cross_validate`.
    genes
        Genes that the user named to be modelled: a set of their own then, the first.

    Raises
    ------
    ValueError
        If a name is neither built in nor has genes.
    """
    names = [gene_sets] if isinstance(gene_sets, str) else gene_sets
    given = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
    if not given:
        msg = (
            f"`gene_sets` is empty. Name one or more of {list(BUILT_IN)}, or give a mapping of names to lists of genes."
        )
        raise ValueError(msg)
    parsed: dict[str, list[str] | None] = {} if genes is None else {NAMED: list(dict.fromkeys(genes))}
    for name, own in given.items():
        if isinstance(own, str):
            msg = f"`gene_sets`: the genes of {name!r} are the string {own!r}; a list of genes is needed."
            raise ValueError(msg)
        listed = [] if own is None else list(dict.fromkeys(own))
        if not listed and name not in BUILT_IN:
            msg = (
                f"Unknown gene set {name!r}, without genes of its own. Valid names are {list(BUILT_IN)}; give genes of "
                f"your own in a mapping: {{{name!r}: [...]}}."
            )
            raise ValueError(msg)
        if name in parsed:
            msg = f"`gene_sets`: the name {name!r} is taken by the genes in `genes`. Give the set another name."
            raise ValueError(msg)
        parsed[name] = listed or None
    return parsed


class GeneSets:
    """Sets of genes to score.

    Parameters
    ----------
    spots
        All spots.
    wanted
        What :func:`parse_gene_sets` returned.
    n_genes
        Genes of a set that is chosen, at most.
    genes
        Genes to choose from; all by default.

    Raises
    ------
    KeyError
        If genes of the user's own are absent from the counts.
    """

    def __init__(
        self,
        spots: Spots,
        wanted: Mapping[str, list[str] | None],
        *,
        n_genes: int,
        genes: Sequence[str] | None = None,
    ) -> None:
        self.spots = spots
        self.wanted = dict(wanted)
        self.n_genes = n_genes
        position = {gene: i for i, gene in enumerate(spots.genes)}
        for name, own in self.wanted.items():
            check_named_genes(own or (), spots.genes, f"genes of the set {name!r}")
        named = spots.genes if genes is None else [gene for gene in dict.fromkeys(genes) if gene in position]
        self._candidates = np.array([position[gene] for gene in named], dtype=np.intp)
        self._moran: dict[bytes, NDArray[np.float64]] = {}

    def choose(self, rows: NDArray[np.intp]) -> dict[str, list[str]]:
        """Sets for a fold with these training spots; nothing else is looked at."""
        measured = rows[self.spots.measured[rows]]
        if len(measured) == 0:
            return {name: [] for name in self.wanted}
        return {
            name: [self.spots.genes[i] for i in self._chosen(name, measured)] if own is None else list(own)
            for name, own in self.wanted.items()
        }

    def to_model(self, chosen: Mapping[str, list[str]]) -> list[str]:
        """Genes of a fold's sets that have to be modelled in addition to those that a fit chooses."""
        # the most variable genes are scored as far as they are modelled
        added = [
            genes
            for name, genes in chosen.items()
            if name != NAMED and not (name == HIGHLY_VARIABLE and self.wanted[name] is None)
        ]
        return list(dict.fromkeys(gene for genes in added for gene in genes))

    def _chosen(self, name: str, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        match name:
            case "highly_variable":
                return self._variable(rows, self.n_genes)
            case "highly_expressed":
                score = np.mean([self._mean(here) for here in rows_by_slide(self.spots.slide, rows)], axis=0)
                return self._best(score, self._candidates[score[self._candidates] > 0])
            case _:
                score = np.mean([self._moran_of(here) for here in rows_by_slide(self.spots.slide, rows)], axis=0)
                return self._best(score, np.sort(self._variable(rows, len(self._candidates))))

    def _variable(self, rows: NDArray[np.intp], n_genes: int) -> NDArray[np.intp]:
        spots = self.spots
        counts = spots.counts[rows][:, self._candidates]
        return self._candidates[choose_genes(counts, spots.depth[rows], spots.slide[rows], n_genes=n_genes)]

    def _best(self, score: NDArray[np.float64], columns: NDArray[np.intp]) -> NDArray[np.intp]:
        # ties are settled by the order of the genes
        return columns[np.argsort(-score[columns], kind="stable")][: self.n_genes]

    def _mean(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        expression = log_normalize_sparse(self.spots.counts[rows], self.spots.depth[rows])
        return np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()

    def _moran_of(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Moran's I of every gene on one slide, 0 where a gene is constant."""
        # a slide is a training slide in all folds but one
        key = rows.tobytes()
        if key not in self._moran:
            self._moran[key] = self._compute_moran(rows)
        return self._moran[key]

    def _compute_moran(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        spots = self.spots
        found = np.zeros(len(spots.genes))
        if len(rows) < 3:
            return found
        graph = neighbor_graph(spots.xy[rows])
        expression = log_normalize_sparse(spots.counts[rows], spots.depth[rows]).tocsc()
        for start in range(0, len(found), N_AT_ONCE):
            part = slice(start, start + N_AT_ONCE)
            found[part] = np.nan_to_num(moran(expression[:, part].toarray(), graph))
        return found
