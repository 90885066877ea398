"""What made the features of a slot: our records, or "given" for custom features; and computing and keeping them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._reading import obsm_array, require_images
from stcontrast._records import read_record, write_record
from stcontrast.pp._encoders import N_COLOR, ColorEncoder, identity
from stcontrast.pp._features import at_recorded_scale, changed_since, encode_spots, is_ours, same_scale, split_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.pp._features import FeatureSpec


__all__ = [
    "Record",
    "apart",
    "block_widths",
    "brief",
    "changed_by_user",
    "describe",
    "encoded",
    "held",
    "is_outdated",
    "keep_features",
    "present",
    "same_features",
    "with_recorded_scale",
]

type Record = dict[str, Any]
"""What made a block of features: slot of `obsm`, encoder, fields in µm, perhaps stain, and number of features."""
type Block = tuple[NDArray[Any], Record]
logger = logging.getLogger(__name__)


def describe(source: Sections, slot: str) -> list[Record]:
    """What made every block of the features of an object: our record, or "given" for custom features.

    Raises
    ------
    ValueError
        If the slot is no table of features, or was changed after it was written.
    """
    return [record for _, record in _blocks(source, slot)]


def same_features(one: Sequence[Record], other: Sequence[Record]) -> bool:
    """Whether records describe the same blocks of features. Weights are the same by content, not by path."""
    return [_identity(record) for record in one] == [_identity(record) for record in other]


def brief(made_by: Sequence[Record]) -> str:
    """What made the blocks of a slot, in a few words."""
    first = made_by[0]
    if first["encoder"]["kind"] == "given":
        return f"{first['encoder']['name']} ({sum(block_widths(made_by))} a spot)"
    stain = f" of stain normalised by {first['stain']['method']}" if "stain" in first else ""
    names = " and ".join(str(record["encoder"]["name"]) for record in made_by)
    return f"{names} at {[f'{value:g}' for value in first['field_um']]} µm{stain}"


def apart(one: Sequence[Record], other: Sequence[Record]) -> str:
    """In what encoders of the same name and fields differ, for a message."""
    if brief(one) != brief(other):
        return ""
    pairs = [(identity(a["encoder"]), identity(b["encoder"])) for a, b in zip(one, other, strict=False)]
    told = [
        f"{key}: {a.get(key)} against {b.get(key)}"
        for a, b in pairs
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
    ]
    return f" ({', '.join(told)})" if told else ""


def present(source: Sections, record: Record) -> NDArray[np.float32] | None:
    """A block of features that is there as a model wants it, or held by what is there; `None` otherwise."""
    if record["slot"] not in source.table.obsm:
        return None
    for block in _blocks(source, record["slot"]):
        for features, made_by in held(*block):
            if same_features([made_by], [record]):
                return np.asarray(features, dtype=np.float32)
    return None


def held(features: NDArray[np.float32], record: Record) -> Iterator[Block]:
    """A block of features, and that of colour in it: in features of texture they are the first of each field."""
    yield features, record
    if record["encoder"]["kind"] == "texture":
        fields = features.reshape(len(features), len(record["field_um"]), -1)
        of_color = fields[..., :N_COLOR].reshape(len(features), -1)
        encoder = ColorEncoder(record["encoder"]["size_px"])
        yield of_color, {**record, "encoder": encoder.spec, "n_features": of_color.shape[1]}


def _blocks(source: Sections, slot: str) -> list[Block]:
    """The blocks of features of a slot, with what made each."""
    features = obsm_array(source.table, slot)
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiub":
        msg = (
            f"`obsm[{slot!r}]` must be an array of numbers (n_spots, n_features), found shape {features.shape}, type "
            f"{features.dtype}."
        )
        raise ValueError(msg)
    record = read_record(source.table, "image_features", slot)
    if record is None:
        width = features.shape[1]
        given = {"kind": "given", "name": slot, "n_features": width}
        return [(features, {"slot": slot, "encoder": given, "field_um": [], "n_features": width})]
    blocks = split_blocks(features, record)
    if not blocks:
        raise ValueError(changed_by_user(slot))
    kept = ("encoder", "stain", "n_features")
    return [
        (part, {"slot": slot, "field_um": [float(value) for value in made_by["field_um"]]}
        | {key: made_by[key] for key in kept if key in made_by})
        for part, made_by in blocks
    ]  # fmt: skip


def _identity(record: Record) -> str:
    return json.dumps([identity(record["encoder"]), record["field_um"], record.get("stain")], sort_keys=True)


def changed_by_user(slot: str) -> str:
    return (
        f"`obsm[{slot!r}]` is not what its record says: it was changed after `stc.pp.image_features` wrote it. Make it again "
        "with `stc.pp.image_features(..., overwrite=True)`, or move your own features to a slot of another name "
        "(`use_rep`)."
    )


def block_widths(made_by: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Number of features of every block."""
    return tuple(int(record["n_features"]) for record in made_by)


def with_recorded_scale(source: Sections, slot: str) -> Sections:
    """The object with its slides at the scale that features in a slot were made at, unless the user gave another."""
    record = read_record(source.table, "image_features", slot) if slot in source.table.obsm else None
    if record is None or not (blocks := split_blocks(obsm_array(source.table, slot), record)):
        return source
    _, of_block = blocks[0]
    return replace(source, slides=[at_recorded_scale(slide, of_block, of_block) for slide in source.slides])


def is_outdated(source: Sections, slot: str) -> bool:
    """Whether features that we made no longer match a slide; its name and what has changed are logged at WARNING.

    Raises
    ------
    ValueError
        If the slot holds something else than what was written there.
    """
    features, record = obsm_array(source.table, slot), read_record(source.table, "image_features", slot)
    if record is None:
        return False
    if not is_ours(features, record):
        raise ValueError(changed_by_user(slot))
    outdated = False
    block, of_block = split_blocks(features, record)[0]
    for slide in source.slides:
        then = at_recorded_scale(slide, of_block, of_block)
        if slide.um_per_px is not None and not same_scale(then.um_per_px, slide.um_per_px):
            logger.warning(
                "Slide %s: its image features in `obsm[%r]` were made at %.4g µm per pixel, but its spots suggest %.4g. The "
                "features are used unchanged. To correct the scale, give `um_per_px`.",
                slide.name, slot, then.um_per_px, slide.um_per_px,
            )  # fmt: skip
        reason = changed_since(then, of_block, block[slide.rows], of_block)
        if reason is not None:
            logger.warning(
                "Slide %s: its image features in `obsm[%r]` no longer match the slide, as %s. They are computed again.",
                slide.name, slot, reason,
            )  # fmt: skip
            outdated = True
    if outdated:
        fields = [float(field) for _, made_by in split_blocks(features, record) for field in made_by["field_um"]]
        require_images(with_recorded_scale(source, slot), fields)
    return outdated


def encoded(source: Sections, specs: Sequence[FeatureSpec], slot: str) -> tuple[NDArray[np.float32], Record]:
    """Features and their record; slides whose features in the slot still match are not encoded again."""
    there = obsm_array(source.table, slot) if slot in source.table.obsm else None
    record = read_record(source.table, "image_features", slot)
    return encode_spots(with_recorded_scale(source, slot), specs, there=there, record=record)


def keep_features(source: Sections, features: NDArray[np.float32], record: Mapping[str, Any], slot: str) -> None:
    """Write features and what made them into the table."""
    source.table.obsm[slot] = features
    write_record(source.table, "image_features", record, slot)
    logger.info("Added obsm[%r] and its record.", slot)
