"""Image features of the user's objects: those that are there, or made and cached."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._keys import IMAGE_FEATURES, TUNED_FEATURES
from stcontrast._reading import require_images
from stcontrast._records import read_record, write_record
from stcontrast.pp._encoders import N_COLOR, ColorEncoder, TextureEncoder, identity
from stcontrast.pp._features import DEFAULT_FIELDS_UM, FeatureSpec, encode_spots, feature_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.pp._encoders import Encoder

__all__ = [
    "check_features",
    "color_features",
    "describe",
    "features_for",
    "features_there",
    "features_to_fit",
    "keep_features",
]

logger = logging.getLogger(__name__)


def slot_of(record: dict[str, Any]) -> str:
    """Slot of `obsm` for features of a kind: those of a tuned encoder have one of their own."""
    return TUNED_FEATURES if record["encoder"]["kind"] == "tuned" else IMAGE_FEATURES


def keep_features(source: Sections, features: NDArray[np.float32], record: dict[str, Any]) -> None:
    """Write features and what made them into the table, each in its slot."""
    slot = slot_of(record)
    source.table.obsm[slot] = features
    write_record(source.table, "image_features", record, slot)
    logger.info("Added obsm[%r] and what made it.", slot)


def features_to_fit(
    sources: Sequence[Sections],
    *,
    encoder: Encoder | None,
    fields: tuple[float, ...] | None,
    obsm_key: str = IMAGE_FEATURES,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Features of all spots for training; makes and caches those that are absent.

    Parameters
    ----------
    sources
        The user's objects.
    encoder, fields
        What the features have to be; `None`: what is there, else colour and texture at the default fields.
    obsm_key
        Slot of `obsm`.

    Returns
    -------
    Features (n_spots, n_features); and what made them.

    Raises
    ------
    ValueError
        If the objects' features were made in different ways, or otherwise than asked for.
    """
    there = [describe(source, obsm_key) for source in sources if obsm_key in source.table.obsm]
    for record in there:
        asked = {
            "encoder": record["encoder"] if encoder is None else encoder.spec,
            "field_um": record["field_um"] if fields is None else list(fields),
        } | {key: record[key] for key in ("stain",) if key in record}
        if not same_features(record, asked):
            msg = (
                f"`obsm[{obsm_key!r}]` holds {brief(record)}, but {brief(asked)} were asked for. Call "
                "`stc.pp.image_features` to replace them (your own with `overwrite=True`), or leave out `encoder` and `field_um` to use them."
            )
            raise ValueError(msg)
    chosen: Encoder = encoder or TextureEncoder()
    fields = fields or DEFAULT_FIELDS_UM
    to_make = {"encoder": chosen.spec, "field_um": list(fields)}
    records = [describe(source, obsm_key) if obsm_key in source.table.obsm else to_make for source in sources]
    if any(not same_features(record, records[0]) for record in records):
        msg = (
            "The objects' image features were made, or would be made, in different ways: "
            f"{sorted({brief(record) for record in records})}. Make them again with one call of "
            "`stc.pp.image_features` each."
        )
        raise ValueError(msg)
    for source in sources:
        if obsm_key not in source.table.obsm:
            keep_features(source, *encode_spots(source, FeatureSpec(chosen, fields)))
    return _stack([np.asarray(source.table.obsm[obsm_key], dtype=np.float32) for source in sources]), records[0]


def check_features(sources: Sequence[Sections], record: dict[str, Any], *, encoder: Encoder | None) -> None:
    """Raise where features of the kind that a model wants are absent and cannot be made."""
    obsm_key = slot_of(record)
    if record["encoder"]["kind"] == "tuned" and (encoder is None or encoder.spec != record["encoder"]):
        msg = (
            "The model brings the encoder that was fine-tuned with it, and predicts with no other: leave out `encoder`."
        )
        raise ValueError(msg)
    for source in sources:
        present = obsm_key in source.table.obsm
        if _present(source, record, obsm_key) is not None:
            continue
        if record["encoder"]["kind"] == "given" and encoder is None:
            found = brief(describe(source, obsm_key)) if present else "none"
            msg = (
                f"The model was trained on features of the user's own in `obsm[{obsm_key!r}]` "
                f"({record['encoder']['n_features']} a spot), found {found}. Put features made the same way there."
            )
            raise ValueError(msg)
        require_images(source)


def features_for(source: Sections, record: dict[str, Any], *, encoder: Encoder | None) -> NDArray[np.float32]:
    """Features of one object as a model wants them: those that are there if they fit, else made.

    New features are kept in the table where the slot is free; a slot that holds others is left as it is.
    """
    obsm_key = slot_of(record)
    present = obsm_key in source.table.obsm
    found = _present(source, record, obsm_key)
    if found is not None:
        return found
    check_features([source], record, encoder=encoder)
    features, written = encode_spots(source, feature_spec(record, encoder=encoder))
    if not present:
        keep_features(source, features, written)
    return features


def features_there(source: Sections, record: dict[str, Any]) -> NDArray[np.float32] | None:
    """Features of one object that are there as a model wants them; `None` where they have to be made."""
    return _present(source, record, slot_of(record))


def color_features(
    sources: Sequence[Sections], features: NDArray[np.float32], record: dict[str, Any]
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Plain colour statistics of all spots at the fields of their features, for the colour baseline.

    Parameters
    ----------
    sources
        The user's objects; nothing is written to them.
    features, record
        Their features (n_spots, n_features) and what made them: if those are colour statistics, they are taken.

    Returns
    -------
    Colour statistics (n_spots, n_color), and what made them.
    """
    if record["encoder"]["kind"] == "color":
        return features, record
    if record["encoder"]["kind"] == "texture":
        return _color_part(features, record)
    encoder: Encoder = ColorEncoder()
    fields = tuple(record["field_um"]) or DEFAULT_FIELDS_UM
    for source in sources:
        require_images(source)
    parts = [encode_spots(source, FeatureSpec(encoder, fields))[0] for source in sources]
    return _stack(parts), {"encoder": encoder.spec, "field_um": list(fields)}


def _present(source: Sections, record: dict[str, Any], obsm_key: str) -> NDArray[np.float32] | None:
    """Features that are there as a model wants them, or hold them; `None` otherwise."""
    if obsm_key not in source.table.obsm:
        return None
    features, there = np.asarray(source.table.obsm[obsm_key], dtype=np.float32), describe(source, obsm_key)
    if same_features(there, record):
        return features
    if there["encoder"]["kind"] == "texture":
        of_color, made_by = _color_part(features, there)
        return of_color if same_features(made_by, record) else None
    return None


def _color_part(features: NDArray[np.float32], record: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Statistics of colour in features that hold those of texture too, where they are the first of each field."""
    fields = features.reshape(len(features), len(record["field_um"]), -1)
    encoder = ColorEncoder(record["encoder"]["size_px"])
    return fields[..., :N_COLOR].reshape(len(features), -1), {**record, "encoder": encoder.spec}


def describe(source: Sections, obsm_key: str) -> dict[str, Any]:
    """What made the features of an object: our record, or "given" for features of the user's own."""
    record = read_record(source.table, "image_features", obsm_key)
    width = int(np.asarray(source.table.obsm[obsm_key]).shape[1])
    if record is None:
        return {"encoder": {"kind": "given", "name": obsm_key, "n_features": width}, "field_um": []}
    found = {"encoder": record["encoder"], "field_um": [float(value) for value in record["field_um"]]}
    return found | {"stain": record["stain"]} if "stain" in record else found


def same_features(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records describe the same features. Weights are the same by content, not by path."""
    return _identity(one) == _identity(other)


def brief(record: dict[str, Any]) -> str:
    """A record in a few words."""
    stain = f" of stain normalised by {record['stain']['method']}" if "stain" in record else ""
    return f"{record['encoder']['name']} at {[f'{value:g}' for value in record['field_um']]} µm{stain}"


def _identity(record: dict[str, Any]) -> str:
    return json.dumps([identity(record["encoder"]), record["field_um"], record.get("stain")], sort_keys=True)


def _stack(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        msg = f"The objects have different numbers of image features: {widths}."
        raise ValueError(msg)
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        msg = "The image features hold values that are not finite."
        raise ValueError(msg)
    return features
