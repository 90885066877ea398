"""What the report of a cross-validation says, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pandas as pd

from stcontrast._records import VERSION
from stcontrast._report import MAX_CLASSES, RULE, SlideNumbers, judged, slide_maps
from stcontrast.metrics._classes import calibration_bins, calibration_error
from stcontrast.tl.cross_validation._scoring import CEILING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = ["cv_content"]

type Folds = tuple[tuple[list[str], dict[str, list[str]]], ...]


class Result(Protocol):
    """What a report needs of a :class:`~stcontrast.tl.CrossValidation`."""

    @property
    def methods(self) -> list[str]: ...
    @property
    def scores(self) -> pd.DataFrame: ...
    @property
    def classes(self) -> pd.DataFrame: ...
    @property
    def failures(self) -> pd.DataFrame: ...
    @property
    def predictions(self) -> AnnData: ...
    @property
    def _sets(self) -> Folds: ...
    @property
    def _measured(self) -> NDArray[np.float32] | None: ...
    @property
    def _outside(self) -> pd.DataFrame | None: ...
    def summary(self) -> pd.DataFrame: ...
    def confusion(self, method: str) -> pd.DataFrame: ...


INTERVAL: Final = "95 % interval over donors"
GENE_COLUMNS: Final = {
    "r": "r, mean of donors",
    "lowest": "r, worst donor",
    "ceiling": "ceiling of r",
    "coverage": "in the 90 % interval",
    "interval_width": "width of the interval",
}


def cv_content(cv: Result, *, method: str, title: str, slides: Mapping[str, Slide] | None = None) -> dict[str, Any]:
    """Values for the template.

    Parameters
    ----------
    cv
        The result.
    method
        Method whose genes, maps and classes are shown.
    title
        Title of the page.
    slides
        The slides with their H&E, by name.
    """
    genes = _genes(cv, method)
    donors = sorted(set(cv.scores["donor"]))
    return {
        "title": title,
        "subtitle": f"All numbers come from donors that no model had seen. Genes, maps and classes are shown for the method “{method}”.",
        "version": VERSION,
        "card": [
            ("Methods", ", ".join(cv.methods)),
            ("Held-out donors of each fold", "; ".join(", ".join(held_out) for held_out, _ in cv._sets)),
            ("Donors with scores", f"{len(donors)}: {', '.join(donors)}"),
            ("Genes with scores", str(0 if genes is None else len(genes))),
            ("Fits that failed", _failures(cv.failures)),
            ("Intervals of single predictions", "90 %, from out-of-fold residuals of the training donors of each fold"),
        ],
        "methods": _methods(cv),
        "genes": None if genes is None else _gene_table(genes),
        "maps": None if genes is None else _maps(cv, method, list(genes.index), slides or {}),
        "classes": _classes(cv, method),
        "slides": _slides(cv, method),
    }


def _failures(failures: pd.DataFrame) -> str:
    if failures.empty:
        return "none"
    return "; ".join(f"{row.method} without {row.donors}: {row.error}" for row in failures.itertuples())


def _methods(cv: Result) -> dict[str, Any]:
    table = cv.summary()
    values = {str(method): {str(k): float(v) for k, v in row.items()} for method, row in table.to_dict("index").items()}
    shown = [str(name) for name in table if not str(name).endswith(("_low", "_high"))]
    # the differences, with intervals, are read first
    shown.sort(key=lambda name: (name not in {"donors", "pearson"}, "_vs_" not in name))
    rows = [[method, *(_cell(row, name) for name in shown)] for method, row in values.items()]
    n_donors = int(table["donors"].max())
    note = (
        "Means over the genes of a slide, then the slides of a donor, then the donors. "
        f"“Ceiling” is the highest correlation that counting noise allows. “vs”: the paired difference, with its {INTERVAL}"
        + ("." if n_donors >= 3 else f"; there is none with {n_donors} donors.")
    )
    return {"columns": ["method", *(name.replace("_", " ") for name in shown)], "rows": rows, "note": note}


def _cell(row: Mapping[str, float], name: str) -> str | float:
    if name == "donors":
        return f"{row[name]:.0f}"
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    if not np.isfinite(low):
        return row[name]
    # the method that the others are compared with
    if low == high == 0:
        return "0"
    return f"{row[name]:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")


def _genes(cv: Result, method: str) -> pd.DataFrame | None:
    """Scores of every gene by one method, best first; `None` where it has none."""
    scores = cv.scores[cv.scores["gene"] != ""]
    of_method = scores[scores["method"] == method]
    if of_method.empty:
        return None

    def by_donor(table: pd.DataFrame, metric: str) -> pd.Series:
        of_slides = table[table["metric"] == metric].groupby(["gene", "donor", "slide"])["value"].mean()
        return of_slides.groupby(["gene", "donor"]).mean()

    r = by_donor(of_method, "pearson")
    columns = {
        "r": r.groupby("gene").mean(),
        "lowest": r.groupby("gene").min(),
        "ceiling": by_donor(scores[scores["method"] == CEILING], "pearson").groupby("gene").mean(),
        "coverage": by_donor(of_method, "coverage").groupby("gene").mean(),
        "interval_width": by_donor(of_method, "interval_width").groupby("gene").mean(),
    }
    table = pd.DataFrame(columns, index=pd.Index(of_method["gene"].unique(), name="gene")).astype(np.float64)
    return judged(table.dropna(axis=1, how="all").assign(r=table["r"])).sort_values("r", ascending=False, kind="stable")


def _gene_table(genes: pd.DataFrame) -> dict[str, Any]:
    known = [name for name in GENE_COLUMNS if name in genes]
    rows = [
        [str(gene), *(float(row[name]) if np.isfinite(row[name]) else None for name in known), row["trust"]]
        for gene, row in genes.iterrows()
    ]
    columns = [{"name": "gene", "sorted": False}]
    columns += [{"name": GENE_COLUMNS[name], "sorted": name == "r"} for name in known]
    note = "r is the Pearson correlation of prediction and measurement within a slide. Select the name of a column to sort by it."
    return {"rows": rows, "columns": [*columns, {"name": "trust", "sorted": False}], "note": note, "rule": RULE}


def _maps(cv: Result, method: str, genes: list[str], slides: Mapping[str, Slide]) -> dict[str, Any] | None:
    table = cv.predictions
    kept = [gene for gene in genes if gene in table.var_names]
    columns = table.var_names.get_indexer(pd.Index(kept))
    names = table.obs["slide"].astype(str)
    classes = list(table.obs["annotated"].cat.categories)[:MAX_CLASSES] if "annotated" in table.obs else []
    numbers = []
    for name in dict.fromkeys(names):
        rows = np.flatnonzero(names == name)
        predicted = np.asarray(table.layers[method])[np.ix_(rows, columns)]
        observed = np.full(predicted.shape, np.nan, dtype=np.float32)
        if cv._measured is not None:
            observed = cv._measured[np.ix_(rows, columns)]
        donor = ", ".join(sorted(set(table.obs["donor"].astype(str).iloc[rows])))
        note = f"donor {donor}, held out"
        centers = np.asarray(table.obsm["spatial"])[rows]
        outside = None
        if cv._outside is not None and method in cv._outside:
            outside = cv._outside[method].to_numpy()[rows] == 1
        of_spots = [_codes(table.obs, column, rows) for column in (f"class_{method}", "annotated")]
        numbers.append(SlideNumbers(name, note, centers, predicted, observed, outside, slides.get(name), *of_spots))
    return slide_maps(numbers, kept, classes)


def _codes(obs: pd.DataFrame, column: str, rows: NDArray[np.intp]) -> NDArray[np.int64] | None:
    """Numbers of the classes of some spots, −1 where there is none; `None` where no spot has one that is drawn."""
    if column not in obs:
        return None
    codes = obs[column].cat.codes.to_numpy()[rows].astype(np.int64)
    codes[codes >= MAX_CLASSES] = -1
    return codes if (codes >= 0).any() else None


def _classes(cv: Result, method: str) -> dict[str, Any] | None:
    table = cv.classes[cv.classes["method"] == method]
    if table.empty:
        return None
    counts = cv.confusion(method)
    of_class = counts.to_numpy().sum(axis=1)
    rows = [
        {"name": str(name), "n": int(n), "shares": [float(v / n) if n else None for v in row]}
        for name, n, row in zip(counts.index, of_class, counts.to_numpy(), strict=True)
    ]
    confidence = table["confidence"].to_numpy(dtype=np.float64)
    right = (table["true"] == table["predicted"]).to_numpy()
    error = calibration_error(confidence[:, None].astype(np.float32), np.where(right, 0, -1))
    return {
        "note": f"{len(table)} annotated spots of held-out donors, pooled. For {right.mean():.0%} the predicted class is the annotated one.",
        "confusion": {"names": [str(name) for name in counts.columns], "rows": rows},
        "calibration": calibration_bins(confidence, right).rename(columns={"n_spots": "n"}).to_dict("records"),
        "error": error,
    }


def _slides(cv: Result, method: str) -> dict[str, Any] | None:
    scores = cv.scores[(cv.scores["method"] == method) & (cv.scores["gene"] != "")]
    if scores.empty:
        return None
    sizes = cv.predictions.obs["slide"].astype(str).value_counts()
    outside = None if cv._outside is None or method not in cv._outside else cv._outside[method]
    shares = None if outside is None else outside.groupby(cv.predictions.obs["slide"].astype(str).to_numpy()).mean()
    wide = scores.pivot_table(index=["slide", "donor"], columns="metric", values="value", aggfunc="mean")
    rows = []
    for slide, donor, r in wide["pearson"].reset_index().itertuples(index=False):
        share = "–" if shares is None or slide not in shares else f"{shares[slide]:.1%}"
        rows.append([slide, donor, str(sizes.get(slide, 0)), f"{r:.2f}".replace("-", "−"), share])
    columns = ["slide", "donor", "spots", "r, mean of genes", "out of distribution"]
    note = "“Out of distribution”: the share of spots whose image does not look like those that the fold's model was trained on."
    return {"columns": columns, "rows": rows, "note": note}
