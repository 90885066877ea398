"""The result of a cross-validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, checked
from stcontrast._files import output_path
from stcontrast._reading import Keys, resolve_all
from stcontrast._report import write_page
from stcontrast.tl.cross_validation._report import cv_content
from stcontrast.tl.cross_validation._scoring import CEILING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["CrossValidation"]

REFERENCE: Final = "ridge"
METRICS: Final = (
    "pearson", "spearman", "rmse", "variance_ratio", "moran_difference", "coverage", "interval_width", "recall_at_10",
    "recall_chance", "macro_f1", "balanced_accuracy", "calibration_error",
)  # fmt: skip
N_BOOTSTRAP: Final = 2000


@dataclass(frozen=True, slots=True, eq=False)
class CrossValidation:
    """Scores and predictions of donors that no model had seen.

    Made by :func:`stcontrast.tl.cross_validate`.

    Attributes
    ----------
    methods
        The methods compared, in order.
    scores
        Every score in a tidy table with the columns method, donor, slide, gene, metric, value.

        Per gene within a slide: ``pearson``, ``spearman``, ``rmse``, ``variance_ratio`` (predicted over measured),
        ``moran_difference`` (Moran's I of the prediction minus that of the measurement), ``coverage`` (share of spots
        whose measurement lies in its 90 % interval) and ``interval_width``. Per slide, for methods that embed image and
        genes in one space: ``recall_at_10`` (:func:`stcontrast.metrics.retrieval_recall`) and ``recall_chance``. Per
        donor: ``macro_f1``, ``balanced_accuracy`` and ``calibration_error``. A constant prediction has correlation 0; a
        gene that is constant on the slide has NaN. The method ``"ceiling"`` is the best ``pearson`` that counting noise
        allows (:func:`stcontrast.metrics.correlation_ceiling`). The genes are those of all gene sets; a gene in several
        sets has one score.
    classes
        Every annotated held-out spot, with the columns method, donor, true, predicted, confidence (probability of the
        predicted class).
    failures
        Fits that failed, with the columns method, donors (held out), error. Usually empty.
    """

    methods: list[str]
    scores: pd.DataFrame = field(repr=False)
    classes: pd.DataFrame = field(repr=False)
    failures: pd.DataFrame = field(repr=False)
    _predictions: AnnData | None = field(repr=False)
    _sets: tuple[tuple[list[str], dict[str, list[str]]], ...] = field(repr=False)
    """Held-out donors of every fold, and its gene sets."""
    _measured: NDArray[np.float32] | None = field(default=None, repr=False)
    """What was measured, in the shape of the predictions."""
    _outside: pd.DataFrame | None = field(default=None, repr=False)
    """Whether each spot of the predictions is out of distribution, by method."""

    @property
    def predictions(self) -> AnnData:
        """The out-of-fold predictions, for held-out spots × genes that were modelled in every fold.

        `X` is the first method's prediction and each method has a layer of its name, log(1 + counts per 10 000), NaN
        where its fit failed; ``obs`` has donor and slide, ``obsm["spatial"]`` the centres in pixels. With a `label_key`,
        ``obs`` also has ``"annotated"`` and, for every method that predicts classes, ``"class_<method>"``.
        """
        if self._predictions is None:
            msg = "Nothing was predicted: no slide has counts."
            raise ValueError(msg)
        return self._predictions

    @property
    def gene_sets(self) -> pd.DataFrame:
        """The genes of every set, with the columns donors (held out), set, gene; chosen on the other donors."""
        rows = [
            (", ".join(donors), name, gene)
            for donors, sets in self._sets
            for name, genes in sets.items()
            for gene in genes
        ]
        return pd.DataFrame(rows, columns=["donors", "set", "gene"])

    def scores_of(self, gene_set: str | None = None) -> pd.DataFrame:
        """The rows of :attr:`scores` that belong to one gene set or to no gene.

        Parameters
        ----------
        gene_set
            Name of the set; the first by default.

        Raises
        ------
        KeyError
            If there is no such set.
        """
        names = list(self._sets[0][1])
        if gene_set is not None and gene_set not in names:
            msg = f"No gene set {gene_set!r}. Valid names are {names}."
            raise KeyError(msg)
        if len(names) < 2:
            return self.scores
        chosen = gene_set or names[0]
        of_set = {(donor, gene) for donors, sets in self._sets for donor in donors for gene in sets[chosen]}
        # classes and embeddings have scores of no gene
        pairs = zip(self.scores["donor"], self.scores["gene"], strict=True)
        kept = [gene == "" or (donor, gene) in of_set for donor, gene in pairs]
        return self.scores[kept].reset_index(drop=True)

    @checked(reference=NAME, gene_set=NAME)
    def summary(self, *, gene_set: str | None = None, reference: str = REFERENCE, seed: int = 0) -> pd.DataFrame:
        """Mean scores, one row per method.

        Parameters
        ----------
        gene_set
            Gene set to take the mean over; the first set by default. It changes the metrics of expression and the
            ceiling.
        reference
            Method that the others are compared with, if it was run.
        seed
            Seed of the bootstrap.

        Returns
        -------
        A table whose index is the methods, with ``"ceiling"`` last. ``donors`` is the number of scored donors, which
        is lower if fits failed. ``pearson`` and the other metrics of :attr:`scores` are means over the genes of a
        slide, then the slides of a donor, then the donors. ``pearson_vs_<reference>`` is the mean paired difference
        over donors, with a 95 % bootstrap interval over donors (``_low``, ``_high``). With fewer than three donors the
        interval is NaN, because a bootstrap would only repeat the donors. The same for ``macro_f1``.

        Raises
        ------
        KeyError
            If there is no such gene set, or a `reference` other than the default was not run.
        """
        if reference not in {*self.methods, REFERENCE}:
            msg = f"`reference`: the method {reference!r} was not run; these were: {self.methods}."
            raise KeyError(msg)
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

    def confusion(self, method: str) -> pd.DataFrame:
        """Annotated spots by true class (rows) and predicted class (columns), all held-out donors together.

        Raises
        ------
        KeyError
            If the method predicted no classes.
        """
        here = self.classes[self.classes["method"] == method]
        if here.empty:
            msg = f"The method {method!r} predicted no classes; these did: {sorted(set(self.classes['method']))}."
            raise KeyError(msg)
        names = pd.Index(sorted({*here["true"], *here["predicted"]}))
        counted = pd.crosstab(here["true"], here["predicted"])
        return counted.reindex(index=names.rename("true"), columns=names.rename("predicted"), fill_value=0)

    def to_csv(self, path: str | Path) -> None:
        """Write :attr:`scores` as a table of comma-separated values."""
        self.scores.to_csv(path, index=False)

    @checked(method=NAME, title=NAME)
    def report(  # noqa: PLR0913
        self,
        path: str | Path,
        *,
        data: SpatialData | AnnData | Sequence[SpatialData | AnnData] | None = None,
        method: str | None = None,
        title: str | None = None,
        image_key: str | Mapping[str, str] | None = None,
        library_key: str | None = None,
        table_key: str | None = None,
        um_per_px: float | Mapping[str, float] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a report: one self-contained web page, which a browser opens without a network.

        The page says what was held out and compares the methods with intervals. A table of genes, to search and sort,
        says which genes can be trusted and by which rule. Maps show observed and predicted expression. Classes are
        shown with their calibration.

        Parameters
        ----------
        path
            The page to write; its name ends in ``.html``.
        data
            The cross-validated data, to show the H&E under the maps. Without it the maps have no H&E.
        method
            Method whose genes, maps and classes are shown; the first by default.
        title
            Title of the page.
        image_key, library_key, table_key, um_per_px
            As in :func:`stcontrast.pp.crops`.
        overwrite
            Replace an existing file.

        Raises
        ------
        ValueError
            If the name of the page does not end in ``.html``.
        FileExistsError
            If the file exists and `overwrite` is False.
        KeyError
            If the method was not run, or none of the slides is in `data`.

        Examples
        --------
        >>> cv.report("report.html", data=sdata)  # doctest: +SKIP
        """
        place = output_path(path, "path", endings=(".html", ".htm"), overwrite=overwrite, what="report")
        if method is not None and method not in self.methods:
            msg = f"`method`: {method!r} was not run; these were: {self.methods}."
            raise KeyError(msg)
        slides: dict[str, Any] = {}
        if data is not None:
            keys = Keys(image_key=image_key, slide_key=library_key, table_key=table_key, um_per_px=um_per_px)
            slides = {slide.name: slide for source in resolve_all(data, keys) for slide in source.slides}
            scored = set(self.scores["slide"]) - {""}
            if scored and not scored & slides.keys():
                msg = f"`data`: none of the slides {sorted(scored)[:5]} of the cross-validation; found {sorted(slides)[:5]}."
                raise KeyError(msg)
        content = cv_content(self, method=method or self.methods[0], title=title or "Cross-validation", slides=slides)
        write_page(place, content)

    def _per_donor(self, gene_set: str | None) -> pd.DataFrame:
        scores = self.scores_of(gene_set)
        by_slide = scores.groupby(["method", "donor", "slide", "metric"], sort=False)["value"].mean()
        by_donor = by_slide.groupby(["method", "donor", "metric"], sort=False).mean()
        return by_donor.unstack("metric")
