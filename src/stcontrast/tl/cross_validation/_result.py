"""What a cross-validation returns."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast.tl.cross_validation._scoring import CEILING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data.spots import Spots

__all__ = ["CrossValidation"]

logger = logging.getLogger(__name__)

REFERENCE: Final = "ridge"
METRICS: Final = (
    "pearson", "spearman", "rmse", "variance_ratio", "moran_difference", "coverage", "interval_width", "recall_at_10",
    "recall_chance", "macro_f1", "balanced_accuracy", "calibration_error",
)  # fmt: skip
N_BOOTSTRAP: Final = 2000


@dataclass(slots=True)
class CrossValidation:
    """Scores and predictions of donors that no model had seen.

    Made by :func:`stcontrast.tl.cross_validate`.

    Attributes
    ----------
    methods
        The methods compared, in order.
    """

    methods: list[str]
    _inputs: Spots = field(repr=False)
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _kept: dict[str, list[tuple[list[str], NDArray[np.intp], NDArray[np.float32]]]] = field(
        default_factory=dict, repr=False
    )
    _failed: list[dict[str, str]] = field(default_factory=list, repr=False)
    _classes: list[pd.DataFrame] = field(default_factory=list, repr=False)
    _sets: list[tuple[list[str], str, list[str]]] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, inputs: Spots, methods: Sequence[str]) -> CrossValidation:
        """Nothing scored yet."""
        return cls(list(methods), inputs)

    def add(
        self, method: str, where: tuple[str, str], metric: str, genes: list[str], values: NDArray[np.float64]
    ) -> None:
        """Note a metric of a method, for each gene (or "") of a donor and slide (or "")."""
        donor, slide = where
        for gene, value in zip(genes, values, strict=True):
            row = {"method": method, "donor": donor, "slide": slide, "gene": gene, "metric": metric}
            self._rows.append({**row, "value": float(value)})

    def keep(self, method: str, genes: list[str], rows: NDArray[np.intp], expression: NDArray[np.float32]) -> None:
        """Keep the prediction of held-out spots."""
        self._kept.setdefault(method, []).append((genes, rows, expression))

    def keep_classes(
        self,
        method: str,
        donor: str,
        truth: NDArray[np.str_],
        guess: NDArray[np.str_],
        confidence: NDArray[np.float64],
    ) -> None:
        """Keep true and predicted classes of a donor's annotated spots, and how sure the prediction was."""
        table = pd.DataFrame({"method": method, "donor": donor, "true": truth, "predicted": guess})
        self._classes.append(table.assign(confidence=confidence))

    def choose(self, donors: Sequence[str], sets: Mapping[str, list[str]]) -> None:
        """Note the gene sets that are scored where these donors are held out."""
        self._sets += [(list(donors), name, genes) for name, genes in sets.items()]

    def scored_genes(self, donors: Sequence[str]) -> list[str]:
        """Genes of all sets where these donors are held out."""
        here = [genes for held, _, genes in self._sets if held == list(donors)]
        return list(dict.fromkeys(gene for genes in here for gene in genes))

    @property
    def scores(self) -> pd.DataFrame:
        """Every score in a tidy table with the columns method, donor, slide, gene, metric, value.

        Per gene within a slide: ``pearson``, ``spearman``, ``rmse``, ``variance_ratio`` (predicted over measured) and
        ``moran_difference`` (Moran's I of the prediction less that of the measurement), ``coverage`` (share of spots
        whose measurement lies in its 90 % interval) and ``interval_width``. Per slide, of methods that embed image and
        genes in one space: ``recall_at_10`` (:func:`stcontrast.metrics.retrieval_recall`) and ``recall_chance``. Per donor: ``macro_f1``,
        ``balanced_accuracy`` and ``calibration_error``. A constant prediction correlates 0; a gene that is constant on
        the slide is NaN. The method ``"ceiling"`` is the best ``pearson`` that counting noise allows
        (:func:`stcontrast.metrics.correlation_ceiling`). Genes are those of all gene sets; a gene of several has one
        score.
        """
        return pd.DataFrame(self._rows, columns=["method", "donor", "slide", "gene", "metric", "value"])

    @property
    def gene_sets(self) -> pd.DataFrame:
        """The genes of every set, with the columns donors (held out), set, gene; chosen on the other donors."""
        rows = [(", ".join(donors), name, gene) for donors, name, genes in self._sets for gene in genes]
        return pd.DataFrame(rows, columns=["donors", "set", "gene"])

    def scores_of(self, gene_set: str | None = None) -> pd.DataFrame:
        """:attr:`scores` of the genes of one set, and those that are of no gene.

        Parameters
        ----------
        gene_set
            Name of the set; the first by default.

        Raises
        ------
        KeyError
            If there is no such set; the message lists those there are.
        """
        names = list(dict.fromkeys(name for _, name, _ in self._sets))
        if gene_set is not None and gene_set not in names:
            msg = f"No gene set {gene_set!r}; there are {names}."
            raise KeyError(msg)
        scores = self.scores
        if len(names) < 2:
            return scores
        gene_set = gene_set or names[0]
        of_set = {
            (donor, gene)
            for donors, name, genes in self._sets
            if name == gene_set
            for donor in donors
            for gene in genes
        }
        here = [
            gene == "" or (donor, gene) in of_set for donor, gene in zip(scores["donor"], scores["gene"], strict=True)
        ]
        return scores[here].reset_index(drop=True)

    def summary(self, *, gene_set: str | None = None, reference: str = REFERENCE, seed: int = 0) -> pd.DataFrame:
        """One row a method.

        Parameters
        ----------
        gene_set
            Genes to take the mean over, a name in :attr:`gene_sets`; the first set by default. It changes the metrics
            of expression and the ceiling.
        reference
            Method that the others are compared with, if it was run.
        seed
            Seed of the bootstrap.

        Returns
        -------
        Index: method, and last ``"ceiling"``. ``donors``: how many were scored; fewer where fits failed. ``pearson``: mean over genes within a slide, then slides within a
        donor, then donors; the other metrics of :attr:`scores` likewise. ``pearson_vs_<reference>``: mean difference over donors, paired, with a
        95 % bootstrap interval over donors (``_low``, ``_high``); NaN interval with fewer than three donors, where a
        bootstrap would only repeat them. The same for ``macro_f1``.

        Raises
        ------
        KeyError
            If there is no such gene set.
        """
        per_donor = self._per_donor(gene_set)
        rows = [*self.methods, *([CEILING] if CEILING in per_donor.index.get_level_values("method") else [])]
        table = per_donor.groupby(level="method").mean().reindex(rows)
        table = table[[metric for metric in METRICS if metric in table]]
        table.insert(0, "donors", per_donor.groupby(level="method").size().reindex(rows).fillna(0).astype(int))
        rng = np.random.default_rng(seed)
        for metric in ("pearson", "macro_f1"):
            if metric not in per_donor or reference not in self.methods:
                continue
            values = per_donor[metric].unstack("donor")
            for method in self.methods:
                difference = (values.loc[method] - values.loc[reference]).dropna().to_numpy()
                name = f"{metric}_vs_{reference}"
                table.loc[method, name] = difference.mean() if len(difference) else np.nan
                low = high = np.nan
                if len(difference) >= 3:
                    draws = rng.choice(difference, size=(N_BOOTSTRAP, len(difference))).mean(axis=1)
                    low, high = np.quantile(draws, (0.025, 0.975))
                table.loc[method, [f"{name}_low", f"{name}_high"]] = low, high
        return table

    @property
    def predictions(self) -> AnnData:
        """Held-out spots × genes modelled in every fold, all out-of-donor.

        `X` is the first method's prediction and each method has a layer of its name, log(1 + counts per 10 000), NaN
        where its fit failed; ``obs`` has donor and slide, ``obsm["spatial"]`` the centres in pixels.
        """
        from anndata import AnnData

        if not self._kept:
            msg = "Nothing was predicted: no slide has counts."
            raise ValueError(msg)
        folds = [fold for parts in self._kept.values() for fold in parts]
        genes = [gene for gene in folds[0][0] if all(gene in set(other) for other, _, _ in folds)]
        rows = np.unique(np.concatenate([held for _, held, _ in folds]))
        layers = {}
        for method, parts in self._kept.items():
            layers[method] = np.full((len(rows), len(genes)), np.nan, dtype=np.float32)
            for names, held, expression in parts:
                columns = [names.index(gene) for gene in genes]
                layers[method][np.searchsorted(rows, held)] = expression[:, columns]
        slide = np.array(self._inputs.slides)[self._inputs.slide[rows]]
        obs = pd.DataFrame(
            {"donor": self._inputs.donor[rows], "slide": slide},
            index=[f"{n}_{i}" for n, i in zip(slide, rows, strict=True)],
        )
        first = next(method for method in self.methods if method in layers)
        return AnnData(
            layers[first].copy(), obs=obs, var=pd.DataFrame(index=pd.Index(genes)), layers=layers,
            obsm={"spatial": self._inputs.xy[rows]},
        )  # fmt: skip

    def fail(self, method: str, donors: Sequence[str], error: Exception) -> None:
        """Note that a method could not be fitted or applied, with these donors held out."""
        logger.error("%s failed with %s held out: %s", method, ", ".join(donors), error, exc_info=error)
        self._failed.append(
            {"method": method, "donors": ", ".join(donors), "error": f"{type(error).__name__}: {error}"}
        )

    @property
    def failures(self) -> pd.DataFrame:
        """Fits that failed, with method, donors that were held out, and error. Empty as a rule."""
        return pd.DataFrame(self._failed, columns=["method", "donors", "error"])

    @property
    def classes(self) -> pd.DataFrame:
        """Every annotated held-out spot and what each method said of it.

        Columns: method, donor, true, predicted, confidence (probability of the predicted class).
        """
        columns = ["method", "donor", "true", "predicted", "confidence"]
        return pd.concat(self._classes, ignore_index=True) if self._classes else pd.DataFrame(columns=columns)

    def confusion(self, method: str) -> pd.DataFrame:
        """Annotated spots by true class (rows) and predicted class (columns), all held-out donors together.

        Raises
        ------
        KeyError
            If the method predicted no classes.
        """
        table = self.classes
        if method not in set(table["method"]):
            msg = f"The method {method!r} predicted no classes; these did: {sorted(set(table['method']))}."
            raise KeyError(msg)
        here = table[table["method"] == method]
        names = pd.Index(sorted({*here["true"], *here["predicted"]}))
        counted = pd.crosstab(here["true"], here["predicted"])
        return counted.reindex(index=names.rename("true"), columns=names.rename("predicted"), fill_value=0)

    def to_csv(self, path: str | Path) -> None:
        """Write :attr:`scores` as a table of comma-separated values."""
        self.scores.to_csv(path, index=False)

    def _per_donor(self, gene_set: str | None) -> pd.DataFrame:
        scores = self.scores_of(gene_set)
        by_slide = scores.groupby(["method", "donor", "slide", "metric"], sort=False)["value"].mean()
        by_donor = by_slide.groupby(["method", "donor", "metric"], sort=False).mean()
        return by_donor.unstack("metric")
