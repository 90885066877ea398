"""`score_genes`: score gene sets on predictions, with intervals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, SHARE, Rule, checked
from stcontrast._keys import LOWER, PREDICTION_TABLE, SLIDE_ERRORS, SPOT_ERRORS, UPPER
from stcontrast._predictions import prediction_of
from stcontrast._reading import (
    as_list,
    check_unique_genes,
    in_memory,
    named_gene_sets,
    on_disk,
    row_blocks,
    slide_of_row,
    why_few_genes,
)
from stcontrast._records import read_record, write_record
from stcontrast.tl._write import check_slots_ours

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["score_genes"]

logger = logging.getLogger(__name__)

LEVEL: Final = 0.9
SETS: Final = Rule(
    "a mapping from names of sets to lists of genes, or the path of a GMT file",
    lambda value: isinstance(value, Mapping | str | PathLike) and bool(value),
)


class _Scores(NamedTuple):
    """Scores (n_spots,) of one set, half the width of their interval, and what it rests on."""

    values: NDArray[np.float64]
    half_width: NDArray[np.float64]
    slide_half_width: float
    used: list[str]


@checked(gene_sets=SETS, min_share=SHARE, prediction_key=NAME)
def score_genes(
    pred: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    gene_sets: Mapping[str, Sequence[str]] | str | PathLike[str],
    *,
    key_added: str = "score",
    min_share: float = 0.25,
    prediction_key: str = PREDICTION_TABLE,
    library_key: str | None = None,
) -> pd.DataFrame:
    r"""Score sets of genes on predicted expression, with intervals, in every spot and for whole slides.

    The score of a set is the mean of the predicted log(1 + counts per 10 000) of its genes. Unlike in
    :func:`scanpy.tl.score_genes`, no mean of random control genes is subtracted, because a prediction does not depend
    on depth. Genes are not standardised. Therefore a score has the same unit on every slide, and highly expressed
    genes have more weight.

    Parameters
    ----------
    pred
        The result of :func:`predict_expression`, or a SpatialData with such a table, or a list of these.
    gene_sets
        Genes by the name of their set; or the path of a GMT file, such as those of MSigDB (it may be gzipped).
    key_added
        Start of the names of the columns.
    min_share
        Share of a set's genes that the model must predict. A set with a smaller share raises an error.
    prediction_key
        Table of predictions of a SpatialData.
    library_key
        AnnData only: column of `obs` that names the slide of a spot; ``"library_id"`` by default, if it exists.

    Returns
    -------
    A table with one row for every slide and set: ``slide``, ``gene_set``, ``score`` (mean over the spots of the
    slide), ``lower``, ``upper``, ``n_spots``, ``n_genes`` (of the set, predicted). Written to `obs` of the prediction
    for every set: ``"<key_added>_<set>"``, ``"<key_added>_<set>_lower"`` and ``"<key_added>_<set>_upper"``; what was
    scored is in ``uns["stcontrast"]["gene_score_<key_added>_<set>"]``.

    Raises
    ------
    FileNotFoundError
        If there is no such GMT file.
    KeyError
        If a SpatialData has no prediction, or a named column is absent.
    TypeError
        If an object is not a prediction.
    ValueError
        If too few genes of a set are predicted, a file is not a GMT file, a column of `obs` holds your own data, two
        objects have a slide of the same name, or the slides of the spots are unknown. All are raised before anything
        is written.

    Notes
    -----
    The interval has the level of the prediction (90 % by default). The measured score should lie in it. With
    :math:`w_g = 1/n` for the :math:`n` genes of a set and :math:`\Sigma` the second moments of the out-of-fold errors
    of genes, it is

    .. math:: s \pm z \sqrt{w^T \Sigma w}, \qquad \Sigma \approx F F^T + \operatorname{diag}(d^2),

    with :math:`z` the normal quantile. Correlated errors average out less than independent ones. The prediction has
    :math:`F` and, as the last column, :math:`d` in ``varm["stc_spot_errors"]``.

    Errors of neighbouring spots are not independent either, and the error in the level of a slide is shared by all of
    its spots. Therefore the interval of the mean of a slide does not shrink with the number of spots. It has the same
    form, with the second moments of the mean errors of held-out slides (``varm["stc_slide_errors"]``), and with the
    quantile of Student's t with as many degrees of freedom as donors were held out. It assumes that the mean errors of
    new and held-out slides follow the same normal distribution around 0. With four donors the interval is wide and
    rough.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    >>> new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=1)
    >>> stc.tl.predict_expression(new, model)
    >>> slides = stc.tl.score_genes(new, {"glands": ["GENE1", "GENE2", "GENE3"]})
    >>> slides[["slide", "gene_set", "n_spots", "n_genes"]].to_dict("records")
    [{'slide': 'donor1_a', 'gene_set': 'glands', 'n_spots': 40, 'n_genes': 3}]
    >>> [name for name in new["stc_pred"].obs if name.startswith("score")]
    ['score_glands', 'score_glands_lower', 'score_glands_upper']
    """
    sets = named_gene_sets(gene_sets)
    columns = {name: _columns(key_added, name) for name in sets}
    _check_columns_differ(columns)
    tables = [prediction_of(item, prediction_key) for item in as_list(pred)]
    slides = [slide_of_row(table, library_key=library_key) for table in tables]
    for table, slide in zip(tables, slides, strict=True):
        _check_slides_known(table, slide)
    _check_slides_differ(slides)
    for table in tables:
        check_unique_genes(table, "the prediction")
        for name, own in columns.items():
            check_slots_ours(table, "gene_score", f"{key_added}_{name}", obs=own)
    used = [_used(table, sets, min_share) for table in tables]
    _warn_of_absent(sets, used)
    _warn_of_intervals(tables, slides)

    rows = []
    for table, slide, of_table in zip(tables, slides, used, strict=True):
        frame: dict[str, NDArray[np.float64]] = {}
        for name, found in _scored(table, of_table).items():
            values = found.values, np.maximum(found.values - found.half_width, 0.0), found.values + found.half_width
            frame |= dict(zip(columns[name], values, strict=True))
            record = {"genes": found.used, "n_genes_of_set": len(sets[name]), "columns": columns[name]}
            write_record(table, "gene_score", record, f"{key_added}_{name}")
            rows += [_of_slide(name, one, slide == one, found) for one in dict.fromkeys(slide.tolist())]
        # at once: pandas warns of many columns that come one by one
        kept = table.obs.drop(columns=[name for name in frame if name in table.obs])
        table.obs = pd.concat([kept, pd.DataFrame(frame, index=kept.index)], axis=1)
    return pd.DataFrame(rows)


def _columns(key_added: str, name: str) -> list[str]:
    """Columns of `obs` for a set: score and both ends of its interval."""
    return [f"{key_added}_{name}", f"{key_added}_{name}_lower", f"{key_added}_{name}_upper"]


def _check_columns_differ(columns: Mapping[str, list[str]]) -> None:
    names = pd.Index([column for own in columns.values() for column in own])
    if not names.is_unique:
        twice = names[names.duplicated()].unique().tolist()
        msg = f"`gene_sets`: two sets would have the columns {twice} of `obs`. Give one of them another name."
        raise ValueError(msg)


def _check_slides_known(table: AnnData, slides: NDArray[np.str_]) -> None:
    """Refuse several slides that are taken for one: their mean says nothing."""
    made_of = list((read_record(table, "prediction") or {}).get("provenance", {}))
    if len(made_of) > 1 and len(set(slides.tolist())) == 1 and slides[0] not in made_of:
        msg = (
            f"The prediction was made of {len(made_of)} slides, {made_of[:5]}, and no column of `obs` says which spot is of "
            "which. Put it there, `pred.obs['library_id'] = adata.obs[...]`, or name it with `library_key`."
        )
        raise ValueError(msg)


def _check_slides_differ(slides: Sequence[NDArray[np.str_]]) -> None:
    names = pd.Index([name for slide in slides for name in dict.fromkeys(slide.tolist())])
    if not names.is_unique:
        msg = (
            f"Several objects have a slide {names[names.duplicated()][0]!r}: their rows could not be told apart. Score them "
            "one by one, or name the slides with `library_key`."
        )
        raise ValueError(msg)


def _used(table: AnnData, sets: Mapping[str, list[str]], min_share: float) -> dict[str, list[str]]:
    """The genes of every set that the table has."""
    used = {name: [gene for gene in genes if gene in table.var_names] for name, genes in sets.items()}
    few = [name for name, genes in sets.items() if not used[name] or len(used[name]) < min_share * len(genes)]
    if few:
        told = ", ".join(f"{name!r} {len(used[name])} of {len(sets[name])}" for name in few[:5])
        more = f" and {len(few) - 5} more sets" if len(few) > 5 else ""
        absent = [gene for gene in sets[few[0]] if gene not in table.var_names]
        msg = (
            f"Too few genes of some sets are predicted: {told}{more}; `min_share` is {min_share:g}. {why_few_genes(absent, table)} "
            "Leave these sets out, lower `min_share`, or fit a model with their genes (`stc.tl.fit(genes=...)`)."
        )
        raise ValueError(msg)
    return used


def _warn_of_absent(sets: Mapping[str, list[str]], used: Sequence[Mapping[str, list[str]]]) -> None:
    fewest = {name: min(len(of_table[name]) for of_table in used) for name in sets}
    short = [f"{name!r} {n} of {len(sets[name])}" for name, n in fewest.items() if n < len(sets[name])]
    if short:
        logger.warning(
            "Not all genes of %d of %d gene sets are predicted; scores are means over those that are: %s%s.", len(short),
            len(sets), ", ".join(short[:10]), ", ..." if len(short) > 10 else "",
        )  # fmt: skip


def _warn_of_intervals(tables: Sequence[AnnData], slides: Sequence[NDArray[np.str_]]) -> None:
    """Say once which slides get no interval, and why."""
    silent, partial, bare = [], [], []
    for table, slide in zip(tables, slides, strict=True):
        names = list(dict.fromkeys(slide.tolist()))
        if not _has_errors(table):
            silent += names
            continue
        held = _holds(table)
        bare += [name for name in names if not held[slide == name].any()]
        if _degrees_of_freedom(table) < 1:
            partial += [name for name in names if name not in bare]
    reasons = {
        f"the prediction does not say how the errors of genes go together (`varm[{SPOT_ERRORS!r}]`; fit and predict again "
        "with this version)": silent,
        "the prediction has no interval there (see `stc.tl.predict_expression`)": bare,
        "only parts of a slide were held out, which tell nothing of the mean of a slide": partial,
    }
    told = [f"{names[:10]}: {reason}" for reason, names in reasons.items() if names]
    if told:
        logger.warning("No intervals, or none of the slide's mean, for %s.", "; for ".join(told))


def _has_errors(table: AnnData) -> bool:
    """Whether a prediction says how the errors of genes go together, and has intervals."""
    return SPOT_ERRORS in table.varm and {LOWER, UPPER} <= set(table.layers)


def _scored(table: AnnData, used: Mapping[str, list[str]]) -> dict[str, _Scores]:
    from scipy.stats import norm, t

    weights = np.zeros((table.n_vars, len(used)))
    for i, genes in enumerate(used.values()):
        weights[table.var_names.get_indexer(genes), i] = 1 / len(genes)
    here = np.flatnonzero(weights.any(axis=1))
    blocks = row_blocks(table.X) if on_disk(table.X) else [in_memory(table.X)]
    values = np.concatenate([np.asarray(block[:, here] @ weights[here], dtype=np.float64) for block in blocks])
    record = read_record(table, "prediction") or {}
    tail = (1 + float(record.get("interval", LEVEL))) / 2
    known = _has_errors(table)
    of_spots = _deviation(table.varm[SPOT_ERRORS], weights) if known else np.full(len(used), np.nan)
    freedom = _degrees_of_freedom(table)
    of_slides = _deviation(table.varm[SLIDE_ERRORS], weights) if known and freedom else np.full(len(used), np.nan)
    holds = _holds(table) if known else np.zeros(table.n_obs, dtype=bool)
    quantile = float(t.ppf(tail, freedom)) if freedom else np.nan
    return {
        name: _Scores(
            values[:, i], np.where(holds, norm.ppf(tail) * of_spots[i], np.nan), quantile * float(of_slides[i]), genes
        )
        for i, (name, genes) in enumerate(used.items())
    }


def _deviation(errors: Any, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root of wᵀΣw (n_sets,) for weights (n_genes, n_sets), Σ as factors and a rest."""
    kept = np.asarray(in_memory(errors), dtype=np.float64)
    factors, rest = kept[:, :-1], kept[:, -1]
    return np.sqrt(((factors.T @ weights) ** 2).sum(axis=0) + (rest**2) @ weights**2)


def _holds(table: AnnData) -> NDArray[np.bool_]:
    """Whether the prediction of a spot has an interval (n_spots,)."""
    return np.isfinite(np.asarray(in_memory(table.layers[UPPER][:, [0]]), dtype=np.float64)).ravel()


def _degrees_of_freedom(table: AnnData) -> int:
    """Donors, or slides of one donor, that were held out as a whole."""
    record = read_record(table, "prediction") or {}
    return int(record.get("n_held_out", 0)) if SLIDE_ERRORS in table.varm else 0


def _of_slide(name: str, slide: str, here: NDArray[np.bool_], found: _Scores) -> dict[str, Any]:
    known = here & np.isfinite(found.values)
    score = float(found.values[known].mean()) if known.any() else np.nan
    half = found.slide_half_width if np.isfinite(found.half_width[here]).any() else np.nan
    return {
        "slide": slide, "gene_set": name, "score": score, "lower": max(score - half, 0.0) if np.isfinite(half) else np.nan,
        "upper": score + half, "n_spots": int(known.sum()), "n_genes": len(found.used),
    }  # fmt: skip
