"""What the report of a fitted model says, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._keys import CLASS
from stcontrast._predictions import MEASURED, PREDICTED, read_values
from stcontrast._reading import Keys, as_list, names_of, obs_column
from stcontrast._records import VERSION, read_record
from stcontrast._report import MAX_CLASSES, RULE_WITHOUT_FOLDS, SlideNumbers, judged, slide_maps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._predictions import Values
    from stcontrast._reading import Slide
    from stcontrast.fitted._calibration import Calibration

__all__ = ["card_of", "model_content"]

# genes whose numbers are read for the maps
MAX_GENES: Final = 48
PROVENANCE: Final = {
    "in-sample": "the model was trained on this slide: r says nothing about new slides",
    "in-donor": "another slide of a donor that the model was trained on",
    "out-of-donor": "a slide of a donor that the model has not seen",
    "unknown-donor": "it is unknown whether the model has seen the donor",
}


def model_content(
    spec: Mapping[str, Any],
    calibration: Calibration,
    model_id: str,
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData] | None,
    *,
    title: str,
    prediction_key: str,
    label_key: str | None,
    keys: Keys,
) -> dict[str, Any]:
    """Values for the template.

    Parameters
    ----------
    spec, calibration, model_id
        The model.
    data
        Objects with predictions of the model; `None` for the model alone.
    title
        Title of the page.
    prediction_key
        Table of predictions of a SpatialData.
    label_key
        Column of `obs` with the annotated class, if there is one.
    keys
        Where things lie in the objects.

    Raises
    ------
    KeyError
        If an object has no prediction, or no object has the annotated class.
    ValueError
        If a prediction was made by another model.
    """
    r = pd.Series(calibration.held_out_r, index=spec["genes"], dtype=np.float64)
    width = pd.Series(2.0 * calibration.half_width, index=spec["genes"], dtype=np.float64)
    genes = judged(pd.DataFrame({"r": r, "width": width})).sort_values("r", ascending=False, kind="stable")
    found: list[Values] = []
    if data is not None:
        found = read_values(as_list(data), list(genes.index[:MAX_GENES]), None, keys, prediction_key=prediction_key)
        _check_made_by(model_id, as_list(data), prediction_key)
    if label_key is not None and not any(label_key in values.source.table.obs for values in found):
        columns = sorted({str(name) for values in found for name in values.source.table.obs})
        msg = f"`label_key`: no column {label_key!r} in `obs` of `data`; its columns are {columns}."
        raise KeyError(msg)
    return {
        "title": title,
        "subtitle": f"The method “{spec['method']}”, model {model_id}.",
        "version": VERSION,
        "card": card_of(spec),
        "methods": None,
        "genes": _gene_table(spec, genes) if spec["genes"] else None,
        "maps": _maps(found, list(genes.index[:MAX_GENES]), spec["classes"], label_key),
        "classes": _classes(spec),
        "slides": _slides(found) if found else None,
    }


def _check_made_by(model_id: str, objects: Sequence[Any], prediction_key: str) -> None:
    for item in objects:
        table = item.tables[prediction_key] if hasattr(item, "tables") else item
        made_by = (read_record(table, "prediction") or {}).get("model_id", model_id)
        if made_by != model_id:
            msg = (
                f"`data`: the prediction was made by the model {made_by}, and this is the model {model_id}. Call "
                "`stc.tl.predict_expression(data, model)` first."
            )
            raise ValueError(msg)


def card_of(spec: Mapping[str, Any], *, names: bool = True) -> list[tuple[str, str]]:
    """What a reader has to know of a model: name and text of every row; donors and slides by name, or counted alone."""

    def listed(of: Sequence[str] | Mapping[str, Any]) -> str:
        return f"{len(of)}: {', '.join(of)}" if names else str(len(of))

    encoders = [str(block["encoder"]["name"]) for block in spec["image_features"]]
    unit, level = spec["held_out_unit"], spec["interval"]
    rests = {
        "donor": "Scores and intervals come from donors that were held out within the training data.",
        "slide": "Scores and intervals come from held-out slides of one donor. They say nothing about another donor.",
    }.get(
        unit,
        f"Scores and intervals come from held-out {unit}s of the training slides. They say nothing about another donor.",
    )
    card = [
        ("Method", str(spec["method"])),
        ("Trained on donors", listed(spec["donors"])),
        ("Trained on slides", listed(spec["slides"])),
        ("Spots", f"{spec['n_spots_used']} of {spec['n_spots']}"),
        ("Held out for the scores", f"one {unit} at a time. {rests}"),
        ("Image features", " and ".join(encoders) + f"; {sum(spec['blocks'])} per spot"),
        ("Genes", f"{len(spec['genes'])}, in {spec['units']}"),
        ("Classes", ", ".join(spec["classes"]) or "none"),
        ("Interval", f"{level:.0%}, of the same width for all spots of a gene"),
        ("Seed", str(spec["seed"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in spec["versions"].items())),
    ]
    if spec["gene_side"]:
        card.insert(3, ("Counts of further slides", listed(spec["gene_side"])))
    if spec["oracle"]:
        card.insert(1, ("Warning", "The method uses the measured depth: it is an upper limit, not a prediction."))
    scores = {"held_out_r": "Mean r on held-out data", "held_out_macro_f1": "Macro F1 on held-out data"}
    card += [(text, f"{spec[name]:.2f}".replace("-", "−")) for name, text in scores.items() if name in spec]
    if weights := _weights(spec):
        card.append(("Weights of its parts", weights))
    return card


def _weights(spec: Mapping[str, Any]) -> str:
    """What the weights of a method of several members are, where it says so."""
    weights = spec.get("weights")
    if not isinstance(weights, dict):
        return ""
    return ", ".join(f"{name} {value:.2f}" for name, value in weights.items() if isinstance(value, int | float))


def _gene_table(spec: Mapping[str, Any], genes: pd.DataFrame) -> dict[str, Any]:
    def known(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    rows = [[str(gene), known(row["r"]), known(row["width"]), row["trust"]] for gene, row in genes.iterrows()]
    columns = [("gene", False), ("r, held out", True), ("width of the interval", False), ("trust", False)]
    unit = spec["held_out_unit"]
    return {
        "rows": rows,
        "columns": [{"name": name, "sorted": by} for name, by in columns],
        "note": f"r is the Pearson correlation within a slide, on held-out {unit}s. Select the name of a column to sort by it.",
        "rule": RULE_WITHOUT_FOLDS
        + ("" if unit == "donor" else " The model was trained on one donor: r says nothing about another donor."),
    }


def _maps(
    found: Sequence[Values], genes: list[str], known: Sequence[str], label_key: str | None
) -> dict[str, Any] | None:
    columns = CLASS, label_key
    of_each = [[_names(values.source.table, column) for column in columns] for values in found]
    seen = sorted({str(name) for names in of_each for one in names if one is not None for name in one[one != ""]})
    classes = [*(name for name in known if name in seen), *(name for name in seen if name not in known)][:MAX_CLASSES]
    numbers = [
        _numbers(values, slide, genes, [_codes(one, slide, classes) for one in names])
        for values, names in zip(found, of_each, strict=True)
        for slide in values.source.slides
    ]
    return slide_maps(numbers, genes, classes)


def _names(table: AnnData, column: str | None) -> NDArray[np.str_] | None:
    """Class of every spot, empty where there is none; `None` without such a column."""
    if column is None or column not in table.obs:
        return None
    values = obs_column(table, column)
    return np.where(values.isna(), "", names_of(values)).astype(np.str_)


def _codes(names: NDArray[np.str_] | None, slide: Slide, classes: Sequence[str]) -> NDArray[np.int64] | None:
    if names is None:
        return None
    number = {name: i for i, name in enumerate(classes)}
    codes = np.array([number.get(name, -1) for name in names[slide.rows].tolist()], dtype=np.int64)
    return codes if (codes >= 0).any() else None


def _numbers(
    values: Values, slide: Slide, genes: Sequence[str], classes: Sequence[NDArray[np.int64] | None]
) -> SlideNumbers:
    def read(kind: str) -> Any:
        nothing = np.full(len(slide.rows), np.nan)
        columns = [values.of[gene, kind][slide.rows] if (gene, kind) in values.of else nothing for gene in genes]
        return np.stack(columns, axis=1).astype(np.float32)

    inside = values.inside[slide.rows]
    note = PROVENANCE.get(str(values.provenance.get(slide.name)), PROVENANCE["unknown-donor"])
    outside = inside == 0 if np.isfinite(inside).any() else None
    return SlideNumbers(slide.name, note, slide.centers, read(PREDICTED), read(MEASURED), outside, slide, *classes)


def _classes(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    if not spec["classes"]:
        return None
    score = spec.get("held_out_macro_f1")
    known = "no annotated spot was held out" if score is None else f"macro F1 {score:.2f} on held-out data"
    note = (
        f"{len(spec['classes'])} classes: {', '.join(spec['classes'])}; {known}. The report of a "
        "cross-validation shows confusion and calibration."
    )
    return {"note": note, "confusion": None, "calibration": None, "error": None}


def _slides(found: Sequence[Values]) -> dict[str, Any]:
    rows = []
    for values in found:
        table = values.source.table
        classes = obs_column(table, CLASS) if CLASS in table.obs else None
        for slide in values.source.slides:
            inside = values.inside[slide.rows]
            inside = inside[np.isfinite(inside)]
            share = f"{(inside == 0).mean():.1%}" if len(inside) else "–"
            shares = "–"
            if classes is not None:
                counted = classes.iloc[slide.rows].value_counts(normalize=True)
                shares = ", ".join(f"{name} {value:.0%}" for name, value in counted.items() if value > 0)
            note = PROVENANCE.get(str(values.provenance.get(slide.name)), PROVENANCE["unknown-donor"])
            rows.append([slide.name, str(len(slide.rows)), note, share, shares])
    return {
        "columns": ["slide", "spots", "what the model knows", "out of distribution", "predicted classes"],
        "rows": rows,
        "note": "“Out of distribution”: the share of spots whose image does not look like those that the model was trained on.",
    }
