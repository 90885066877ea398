"""Predictions as an ordinary table over the same spots."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._keys import (
    EMBEDDING,
    GENE_EMBEDDING,
    HELD_OUT_R,
    IMAGE_EMBEDDING,
    IN_DISTRIBUTION,
    LOWER,
    SLIDE_ERRORS,
    SPOT_ERRORS,
    UNS,
    UPPER,
)
from stcontrast._reading import names_of, obs_column, obsm_array
from stcontrast._records import read_record, storable, write_record
from stcontrast.fitted._fit import fingerprint_of
from stcontrast.pp._features import print_of_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._reading import Sections, Slide
    from stcontrast._records import Record
    from stcontrast.fitted import Prediction, Predictor

__all__ = [
    "check_donor_key",
    "check_prediction_slot",
    "check_slots_ours",
    "images_of",
    "interval_holds",
    "prediction_frame",
    "prediction_table",
    "provenance_of",
    "warn_of_intervals",
    "write_embedding",
]

logger = logging.getLogger(__name__)

# part of the spots of a slide that lie among those of a training slide
SHARE_INSIDE: Final = 0.5

ELEMENT_NAME: Final = re.compile(r"(?!__)[\w.-]+")


def check_prediction_slot(source: Sections, key: str) -> None:
    """Raise where `key` holds an element that we did not write: nothing of the user's is overwritten."""
    if not source.is_spatialdata:
        return
    if not ELEMENT_NAME.fullmatch(key):
        msg = f"`key_added` names a table: use only letters, digits, '_', '.' and '-', found {key!r}."
        raise ValueError(msg)
    if key not in source.data:
        return
    if key in source.data.tables and read_record(source.data.tables[key], "prediction") is not None:
        return
    msg = (
        f"The object has an element {key!r} already, without the record of a prediction by stcontrast (`spatialdata.concatenate` "
        f"drops these records). It is not replaced: give another `key_added`, or delete it (`del sdata[{key!r}]`)."
    )
    raise ValueError(msg)


def check_slots_ours(table: AnnData, record: Record, key: str, **slots: Sequence[str]) -> None:
    """Raise where slots hold something that we have not written: nothing of the user's is replaced.

    Parameters
    ----------
    table
        The user's table.
    record, key
        What we write of slots that we fill, and its key.
    **slots
        Names of the slots by where they are, such as ``obsm``.
    """
    if read_record(table, record, key) is not None:
        return
    taken = [
        f"`{where}[{name!r}]`" for where, names in slots.items() for name in names if name in getattr(table, where)
    ]
    if taken:
        msg = (
            f"{' and '.join(taken)} {'hold' if len(taken) > 1 else 'holds'} something that stcontrast did not write, or "
            "whose record is gone: rename or delete it, or give another `key_added` where there is one."
        )
        raise ValueError(msg)


def _images_of(source: Sections) -> dict[str, Any]:
    """An AnnData's ``uns["spatial"]``, its arrays not copied: what plots need of the slide."""
    if source.is_spatialdata or "spatial" not in source.table.uns:
        return {}
    return {"spatial": {name: dict(library) for name, library in source.table.uns["spatial"].items()}}


def check_donor_key(sources: Sequence[Sections], key: str | None) -> None:
    """Raise where the column is named and absent."""
    for source in sources:
        if key is not None and key not in source.table.obs:
            msg = f"`donor_key`: no column {key!r} in `obs`; its columns are {sorted(source.table.obs.columns)}."
            raise KeyError(msg)


def provenance_of(
    source: Sections, model: Predictor, features: NDArray[np.float32], *, donor_key: str | None
) -> dict[str, str]:
    """What the model knows of each slide: "in-sample", "in-donor", "out-of-donor", or "unknown-donor".

    A training slide is recognised by its image features, whatever its name, and other spots of it by its image; a donor by
    its name in `donor_key`.
    """
    known = set(model.spec["slides"].values())
    result: dict[str, str] = {}
    others: dict[str, str] = {}
    for slide in source.slides:
        donors = None
        if donor_key is not None:
            donors = set(names_of(obs_column(source.table, donor_key))[slide.rows].tolist())
        if fingerprint_of(features, slide.rows) in known:
            result[slide.name] = "in-sample"
        elif donors is not None and not donors & set(model.spec["donors"]):
            # perhaps on the slide of another donor, as on a tissue microarray
            result[slide.name] = "out-of-donor"
        elif trained := _training_slide_of(slide, model):
            result[slide.name] = "in-sample"
            others[slide.name] = trained
        else:
            result[slide.name] = "unknown-donor" if donors is None else "in-donor"
    if others:
        logger.warning(
            "%s: other spots of slides that the model was trained on (%s), by their images. They count as in-sample: neighbours of "
            "these spots were trained on, so scores say nothing about new slides. Hold out whole donors, as "
            "`stc.tl.cross_validate` does.", list(others)[:5], ", ".join(list(dict.fromkeys(others.values()))[:5]),
        )  # fmt: skip
    return result


def images_of(sources: Sequence[Sections]) -> dict[str, dict[str, Any]]:
    """What recognises the image of every slide that has one: its hash, and the corners of the spots in its pixels."""
    return {
        slide.name: {
            "print": print_of_image(slide.image),
            "box": [*slide.centers.min(axis=0).tolist(), *slide.centers.max(axis=0).tolist()],
        }
        for source in sources
        for slide in source.slides
        if slide.image is not None and len(slide.centers)
    }


def _training_slide_of(slide: Slide, model: Predictor) -> str | None:
    """Name of the training slide on whose image, and among whose spots, most of a slide's spots lie."""
    images = model.spec.get("images", {})
    if not images or slide.image is None or not len(slide.centers):
        return None
    print_ = print_of_image(slide.image)
    for name, image in images.items():
        low, high = image["box"][:2], image["box"][2:]
        inside = ((slide.centers >= low) & (slide.centers <= high)).all(axis=1)
        if image["print"] == print_ and inside.mean() > SHARE_INSIDE:
            return str(name)
    return None


def write_embedding(
    table: AnnData,
    model: Predictor,
    found: Mapping[str, NDArray[np.float32]],
    *,
    provenance: Mapping[str, str],
    key_added: str = EMBEDDING,
) -> list[str]:
    """Write the joint embedding of a table's spots, and what made it.

    Parameters
    ----------
    table
        The user's table.
    model
        The model.
    found
        The sides (n_spots, d) by their default slots. Both sides belong to one model: a slot that we wrote and for which
        there is nothing is removed.
    provenance
        In-sample or not, by slide.
    key_added
        What the names of the slots begin with.

    Returns
    -------
    Slots that were written.
    """
    slots = []
    for slot in (IMAGE_EMBEDDING, GENE_EMBEDDING):
        name = slot.replace(EMBEDDING, key_added, 1)
        if slot in found:
            table.obsm[name] = found[slot]
            slots.append(name)
        elif name in table.obsm:
            del table.obsm[name]
    made = {"slots": slots, "model_id": model.model_id, "method": model.method.name, "provenance": dict(provenance)}
    write_record(table, "embedding", made, key_added)
    if key_added == EMBEDDING:
        table.uns[UNS]["model_id"] = model.model_id
    return slots


def prediction_table(
    source: Sections,
    model: Predictor,
    prediction: Prediction,
    rows: NDArray[np.intp],
    *,
    provenance: Mapping[str, str],
    donor_key: str | None = None,
) -> AnnData:
    """The prediction for one object as an AnnData, in the order of its table.

    Parameters
    ----------
    source
        The user's object.
    model, prediction
        The model and its prediction.
    rows
        Rows of `prediction` that belong to this object.
    provenance
        In-sample or not, by slide.
    donor_key
        Column of `obs` to carry over.

    Returns
    -------
    A table: `X`, layers `lower` and `upper`, `obs`, `var`, `varm`, `obsm["spatial"]`, `uns["stcontrast"]["prediction"]`.
    """
    from anndata import AnnData

    frame = prediction_frame(
        source, model, prediction.in_distribution[rows], provenance=provenance, donor_key=donor_key
    )
    layers = {LOWER: prediction.lower[rows], UPPER: prediction.upper[rows]}
    for slide in source.slides:
        if not interval_holds(model, provenance[slide.name]):
            for layer in layers.values():
                layer[slide.rows] = np.nan
    return AnnData(prediction.expression[rows], layers=layers, **frame)


def interval_holds(model: Predictor, provenance: str) -> bool:
    """Whether the model's intervals hold for a slide: sections of one donor say nothing of another donor's level."""
    return bool(model.spec["held_out_unit"] == "donor") or provenance in ("in-sample", "in-donor")


def warn_of_intervals(model: Predictor, provenance: Mapping[str, str]) -> None:
    """Name the slides that get no interval, at WARNING."""
    bare = [name for name, known in provenance.items() if not interval_holds(model, known)]
    if bare:
        logger.warning(
            "No intervals for %s: the intervals of the model come from held-out %ss of the donors %s, and are not valid for "
            "other donors (`lower` and `upper` are NaN). Give `donor_key` if these slides are of the same donors.",
            bare, model.spec["held_out_unit"], model.spec["donors"][:5],
        )  # fmt: skip


def prediction_frame(
    source: Sections,
    model: Predictor,
    in_distribution: NDArray[np.bool_],
    *,
    provenance: Mapping[str, str],
    donor_key: str | None,
) -> dict[str, Any]:
    """What a prediction table has in addition to its numbers: `obs`, `var`, `obsm`, `varm` and `uns`."""
    images = _images_of(source)
    named = (source.region_key, source.instance_key, source.slide_key, donor_key)
    carried = [key for key in named if key and key in source.table.obs]
    obs = pd.DataFrame({key: obs_column(source.table, key) for key in carried}, index=source.table.obs_names)
    obs[IN_DISTRIBUTION] = in_distribution
    # an AnnData's own positions, in pixels of the full resolution, not of the image that scanpy kept
    own = None if source.is_spatialdata else np.asarray(obsm_array(source.table, "spatial"), dtype=np.float64)[:, :2]
    spec = model.spec
    record = {
        "units": spec["units"],
        "model_id": model.model_id,
        "method": spec["method"],
        "encoder": " and ".join(str(block["encoder"]["name"]) for block in spec["image_features"]),
        "interval": spec["interval"],
        "calibrated_on": f"held-out {spec['held_out_unit']}s",
        "n_held_out": spec.get("n_held_out", 0),
        "provenance": dict(provenance),
    }
    calibration = model.calibration
    errors = {SPOT_ERRORS: calibration.spot_errors, SLIDE_ERRORS: calibration.slide_errors}
    return {
        "obs": obs,
        "varm": {name: values for name, values in errors.items() if len(values)},
        "var": pd.DataFrame({HELD_OUT_R: calibration.held_out_r}, index=pd.Index(model.genes)),
        "obsm": {"spatial": source.slide_and_xy()[1] if own is None else own},
        "uns": {UNS: {"prediction": storable(record)}} | images,
    }
