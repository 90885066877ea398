"""Image features of the user's objects: those that are there, or made and cached."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._keys import IMAGE_FEATURES
from stcontrast._reading import middle_spots, obsm_array, require_images, spot_distance
from stcontrast._records import read_record, write_record
from stcontrast.pp._encoders import N_COLOR, ColorEncoder, TextureEncoder, identity, resolve_encoders
from stcontrast.pp._features import (
    DEFAULT_FIELDS_UM,
    FeatureSpec,
    at_recorded_scale,
    changed_since,
    encode_spots,
    feature_spec,
    is_ours,
    join_records,
    pair_encoders,
    split_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.fitted import Predictor
    from stcontrast.pp._encoders import AnyEncoder, Encoder

__all__ = [
    "block_widths",
    "check_slots",
    "chosen_encoders",
    "color_features",
    "describe",
    "features_for",
    "features_to_fit",
    "keep_features",
    "parse_slots",
    "plan_features",
    "spot_distance_um",
    "with_recorded_scale",
]

logger = logging.getLogger(__name__)

# spots that are so many times farther apart than those of training are another kind of spot
OTHER_SPACING: Final = 1.5

type Record = dict[str, Any]
"""What made a block of features: slot of `obsm`, encoder, fields in µm, perhaps stain, and number of features."""
type Block = tuple[NDArray[Any], Record]
type Planned = NDArray[np.float32] | FeatureSpec
"""A block of features that is there, or what it is to be made with."""


def parse_slots(use_rep: str | Sequence[str] | None, *, asked: bool) -> tuple[str, ...]:
    """Slots of `obsm` to learn from, checked.

    Parameters
    ----------
    use_rep
        What the user named.
    asked
        Whether the user also says how features are to be made.

    Raises
    ------
    TypeError, ValueError
        If it is no name or list of names, or one is named twice, or `asked` goes with another slot than the default.
    """
    slots = [IMAGE_FEATURES] if use_rep is None else [use_rep] if isinstance(use_rep, str) else use_rep
    if not isinstance(slots, Sequence) or not all(isinstance(slot, str) for slot in slots):
        msg = f"`use_rep` must be the name of a slot of `obsm`, or a list of names, found {use_rep!r}."
        raise TypeError(msg)
    if not slots or len(set(slots)) < len(slots):
        msg = f"`use_rep` must name one slot of `obsm` or several, each once, found {use_rep!r}."
        raise ValueError(msg)
    if asked and list(slots) != [IMAGE_FEATURES]:
        msg = (
            f"`encoder` and `field_um` say how `obsm[{IMAGE_FEATURES!r}]` is made, and `use_rep` is {use_rep!r}: leave one "
            "or the other out. `stc.pp.image_features(..., key_added=...)` makes the features of another slot."
        )
        raise ValueError(msg)
    return tuple(slots)


def check_slots(sources: Sequence[Sections], slots: Sequence[str], fields: tuple[float, ...] | None) -> None:
    """Raise where features to learn from are absent and cannot be made: only the default slot can.

    Parameters
    ----------
    sources
        The user's objects.
    slots
        Slots of `obsm`.
    fields
        Sides of the crops in µm; `None` for the default ones.

    Raises
    ------
    KeyError
        If another slot is absent; the message lists those that are there.
    ValueError
        If features cannot be made, or are those of a fine-tuned encoder.
    """
    for source in sources:
        for slot in slots:
            if slot in source.table.obsm:
                if any(record["encoder"]["kind"] == "tuned" for record in describe(source, slot)):
                    msg = (
                        f"`use_rep`: `obsm[{slot!r}]` was made by an encoder that was fine-tuned on the expression of other "
                        "spots, perhaps of these: what is held out would not be held out. Give "
                        "`image_tower='finetune'` instead."
                    )
                    raise ValueError(msg)
            elif slot == IMAGE_FEATURES:
                require_images(source, fields or DEFAULT_FIELDS_UM)
            else:
                msg = (
                    f"`use_rep`: no slot {slot!r} in `obsm` of an object with the slides "
                    f"{[slide.name for slide in source.slides][:5]}; its slots are {sorted(source.table.obsm)}. "
                    f"`stc.pp.image_features(data, encoder=..., key_added={slot!r})` makes it."
                )
                raise KeyError(msg)


def keep_features(source: Sections, features: NDArray[np.float32], record: Mapping[str, Any], slot: str) -> None:
    """Write features and what made them into the table."""
    source.table.obsm[slot] = features
    write_record(source.table, "image_features", record, slot)
    logger.info("Added obsm[%r] and what made it.", slot)


def features_to_fit(
    sources: Sequence[Sections],
    *,
    encoders: Sequence[Encoder] | None,
    fields: tuple[float, ...] | None,
    slots: Sequence[str] = (IMAGE_FEATURES,),
) -> tuple[NDArray[np.float32], list[Record]]:
    """Features of all spots for training; makes and caches those that are absent.

    Parameters
    ----------
    sources
        The user's objects, as :func:`check_slots` wants them.
    encoders, fields
        What the features have to be; `None`: what is there, else colour and texture at the default fields.
    slots
        Slots of `obsm`.

    Returns
    -------
    Features (n_spots, n_features), slot after slot; and what made every block.

    Raises
    ------
    ValueError
        If the objects' features were made in different ways, or otherwise than asked for.
    """
    chosen: Sequence[Encoder] = encoders or [TextureEncoder()]
    to_make = [FeatureSpec(encoder, fields or DEFAULT_FIELDS_UM) for encoder in chosen]
    for slot in slots:
        _check_alike(sources, slot, [spec.record for spec in to_make], encoders=encoders, fields=fields)
    # of all objects before the first is encoded: errors come before any work
    to_encode = {
        (slot, i): to_make if slot not in source.table.obsm else _outdated(source, slot, encoders=encoders)
        for slot in slots
        for i, source in enumerate(sources)
    }
    made_by: list[Record] = []
    columns = []
    for slot in slots:
        for i, source in enumerate(sources):
            if specs := to_encode[slot, i]:
                keep_features(source, *_encoded(source, specs, slot), slot)
        made_by += describe(sources[0], slot)
        columns.append(
            _stack([np.asarray(obsm_array(source.table, slot), dtype=np.float32) for source in sources], slot)
        )
    if IMAGE_FEATURES in slots:
        _say_what_is_unknown(sources, made_by)
    return (columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)), made_by


def _say_what_is_unknown(sources: Sequence[Sections], made_by: Sequence[Record]) -> None:
    """Features in our own slot without our record: say what they are taken for."""
    for record in made_by:
        if record["slot"] == IMAGE_FEATURES and record["encoder"]["kind"] == "given":
            logger.warning(
                "`obsm[%r]` of %s has no record of what made it (`spatialdata.concatenate` drops `uns`): its %d columns are "
                "taken for features of your own. The model will need features made the same way, in the same slot, of every "
                "new slide. If `stc.pp.image_features` made them, call it again on the joined object (`overwrite=True`) or "
                "give the objects as a list.",
                IMAGE_FEATURES, [slide.name for source in sources for slide in source.slides][:5], record["n_features"],
            )  # fmt: skip


def _outdated(source: Sections, slot: str, *, encoders: Sequence[Encoder] | None) -> list[FeatureSpec]:
    """What to make the features of a slot with again; empty where they still match what they were made of."""
    made_by = describe(source, slot)
    if made_by[0]["encoder"]["kind"] == "given" or not _changed(source, slot):
        return []
    return [
        feature_spec(record, encoder=encoder)
        for record, encoder in zip(made_by, pair_encoders(made_by, encoders), strict=True)
    ]


def _changed(source: Sections, slot: str) -> bool:
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
        raise ValueError(_was_changed(slot))
    outdated = False
    block, of_block = split_blocks(features, record)[0]
    for slide in source.slides:
        then = at_recorded_scale(slide, of_block, of_block)
        if then.um_per_px != slide.um_per_px and slide.um_per_px is not None:
            logger.warning(
                "Slide %s: its image features in `obsm[%r]` were made at %.4g µm per pixel, and its spots suggest %.4g. The "
                "features are used as they are; give `um_per_px` to say what is right.",
                slide.name, slot, then.um_per_px, slide.um_per_px,
            )  # fmt: skip
        reason = changed_since(then, of_block, block[slide.rows], of_block)
        if reason is not None:
            logger.warning(
                "Slide %s: its image features in `obsm[%r]` no longer match the slide, as %s. They are made again.",
                slide.name, slot, reason,
            )  # fmt: skip
            outdated = True
    if outdated:
        fields = [float(field) for _, made_by in split_blocks(features, record) for field in made_by["field_um"]]
        require_images(with_recorded_scale(source, slot), fields)
    return outdated


def with_recorded_scale(source: Sections, slot: str) -> Sections:
    """The object with its slides at the scale that features in a slot were made at, unless the user gave another."""
    record = read_record(source.table, "image_features", slot) if slot in source.table.obsm else None
    if record is None or not (blocks := split_blocks(obsm_array(source.table, slot), record)):
        return source
    _, of_block = blocks[0]
    return replace(source, slides=[at_recorded_scale(slide, of_block, of_block) for slide in source.slides])


def _encoded(source: Sections, specs: Sequence[FeatureSpec], slot: str) -> tuple[NDArray[np.float32], Record]:
    """Features and their record; slides whose features in the slot still match are not encoded again."""
    there = obsm_array(source.table, slot) if slot in source.table.obsm else None
    record = read_record(source.table, "image_features", slot)
    return encode_spots(with_recorded_scale(source, slot), specs, there=there, record=record)


def _was_changed(slot: str) -> str:
    return (
        f"`obsm[{slot!r}]` is not what its record says: it was changed after `stc.pp.image_features` wrote it. Make it again "
        "with `stc.pp.image_features(..., overwrite=True)`, or move your own features to a slot of another name "
        "(`use_rep`)."
    )


def _check_alike(
    sources: Sequence[Sections],
    slot: str,
    to_make: list[Record],
    *,
    encoders: Sequence[Encoder] | None,
    fields: tuple[float, ...] | None,
) -> None:
    """Raise where the features of a slot differ between objects, or from what is asked for."""
    records = [describe(source, slot) if slot in source.table.obsm else to_make for source in sources]
    for there in (record for record in records if record is not to_make):
        specs = [block["encoder"] for block in there] if encoders is None else [encoder.spec for encoder in encoders]
        same = {key: there[0][key] for key in ("field_um", "stain") if key in there[0]}
        asked = [same | {"encoder": spec} | ({} if fields is None else {"field_um": list(fields)}) for spec in specs]
        if not same_features(there, asked):
            msg = (
                f"`obsm[{slot!r}]` holds {brief(there)}, but {brief(asked)} were asked for{_apart(there, asked)}. Call "
                "`stc.pp.image_features` to replace them (your own with `overwrite=True`), or leave out `encoder` and `field_um` to use them."
            )
            raise ValueError(msg)
    if any(not same_features(record, records[0]) for record in records):
        msg = (
            f"The objects' image features in `obsm[{slot!r}]` were made, or would be made, in different ways: "
            f"{sorted({brief(record) for record in records})}. Make them again with one call of "
            "`stc.pp.image_features` each."
        )
        raise ValueError(msg)


def block_widths(made_by: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Number of features of every block."""
    return tuple(int(record["n_features"]) for record in made_by)


def plan_features(
    sources: Sequence[Sections], model: Predictor, *, encoders: Sequence[Encoder] | None
) -> list[list[Planned]]:
    """The blocks of features that a model wants, for every object: those that are there, or what to make them with.

    Features that are there and no longer match their slide are to be made again, with a warning.

    Parameters
    ----------
    sources
        The user's objects.
    model
        The model.
    encoders
        One for every block that the user has not given, instead of those in the records.

    Raises
    ------
    ValueError
        If features are absent and cannot be made, or a slot was changed after it was written. Before any work.
    """
    made_by: Sequence[Record] = model.spec["image_features"]
    paired = pair_encoders(made_by, encoders)
    for record, encoder in zip(made_by, paired, strict=True):
        if record["encoder"]["kind"] == "tuned" and (encoder is None or encoder.spec != record["encoder"]):
            msg = (
                "The model brings the encoder that was fine-tuned with it, and predicts with no other: leave out "
                "`encoder`."
            )
            raise ValueError(msg)
    warn_of_spacing(sources, model)
    return [_planned(source, model, paired) for source in sources]


def _planned(source: Sections, model: Predictor, encoders: Sequence[Encoder | None]) -> list[Planned]:
    made_by: Sequence[Record] = model.spec["image_features"]
    there = [_present(source, record) for record in made_by]
    slots = {str(record["slot"]) for record, block in zip(made_by, there, strict=True) if block is not None}
    changed = {slot for slot in sorted(slots) if _changed(source, slot)}
    planned: list[Planned] = []
    for record, block, encoder in zip(made_by, there, encoders, strict=True):
        slot = record["slot"]
        if block is not None and slot not in changed:
            planned.append(block)
            continue
        if record["encoder"]["kind"] == "given":
            found = brief(describe(source, slot)) if slot in source.table.obsm else "none"
            msg = (
                f"The model was trained on features of the user's own in `obsm[{slot!r}]` "
                f"({record['n_features']} a spot), found {found}. Put features made the same way there."
            )
            raise ValueError(msg)
        if block is None:
            require_images(source, record["field_um"])
        planned.append(feature_spec(record, encoder=encoder, allow_download=model.allow_download))
    return planned


def spot_distance_um(sources: Sequence[Sections]) -> float | None:
    """Median distance in µm between neighbouring spots, over slides; `None` where no slide has a known scale."""
    known = [
        spot_distance(middle_spots(slide.centers)) * slide.um_per_px
        for source in sources
        for slide in source.slides
        if slide.um_per_px is not None and len(slide.centers) > 1
    ]
    known = [value for value in known if np.isfinite(value)]
    return float(np.median(known)) if known else None


def warn_of_spacing(sources: Sequence[Sections], model: Predictor) -> None:
    """Warn where spots lie much denser or sparser than those that the model was trained on."""
    trained = model.spec.get("spot_distance_um")
    if trained is None:
        return
    for source in sources:
        for slide in source.slides:
            here = spot_distance_um([replace(source, slides=[slide])])
            if here is None or max(here, trained) < OTHER_SPACING * min(here, trained):
                continue
            logger.warning(
                "Slide %r: neighbouring spots are %.3g µm apart, and %.3g µm on the slides that the model was trained on. "
                "The model learnt what is in a spot of that size and around it: predictions may be poor. Bin or grid the "
                "slide at the training's distance, or train on slides like this one.", slide.name, here, trained,
            )  # fmt: skip


def features_for(source: Sections, model: Predictor, planned: Sequence[Planned]) -> NDArray[np.float32]:
    """Features of one object as a model wants them (n_spots, n_features): blocks that are there, and others made.

    New features are kept in the table where the slot is free, or holds what we made and no longer matches; a slot that
    holds others is left as it is.
    """
    made_by: Sequence[Record] = model.spec["image_features"]
    parts = []
    for slot, of_slot in groupby(zip(made_by, planned, strict=True), key=lambda pair: str(pair[0]["slot"])):
        wanted, blocks = zip(*of_slot, strict=True)
        found = [_encoded(source, [block], slot) if isinstance(block, FeatureSpec) else (block, {}) for block in blocks]
        parts.append(np.concatenate([part for part, _ in found], axis=1))
        made = [record for _, record in found if record]
        free = slot not in source.table.obsm
        if free or (len(made) == len(wanted) and same_features(describe(source, slot), wanted)):
            keep_features(source, parts[-1], join_records(made), slot)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def color_features(
    sources: Sequence[Sections], features: NDArray[np.float32], made_by: Sequence[Record]
) -> tuple[NDArray[np.float32], list[Record]]:
    """Plain colour statistics of all spots at the fields of their features, for the colour baseline.

    Parameters
    ----------
    sources
        The user's objects; nothing is written to them.
    features, made_by
        Their features (n_spots, n_features) and what made every block: colour statistics among them are taken.

    Returns
    -------
    Colour statistics (n_spots, n_color), and what made them.
    """
    start = 0
    for record, width in zip(made_by, block_widths(made_by), strict=True):
        for block, of_block in _held(features[:, start : start + width], record):
            if of_block["encoder"]["kind"] == "color":
                return block, [of_block]
        start += width
    fields = next((tuple(record["field_um"]) for record in made_by if record["field_um"]), DEFAULT_FIELDS_UM)
    for source in sources:
        require_images(source, fields)
    spec = FeatureSpec(ColorEncoder(), fields)
    found = _stack([encode_spots(source, [spec])[0] for source in sources], IMAGE_FEATURES)
    return found, [{"slot": IMAGE_FEATURES, **spec.record, "n_features": found.shape[1]}]


def describe(source: Sections, slot: str) -> list[Record]:
    """What made every block of the features of an object: our record, or "given" for features of the user's own.

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
    stain = f" of stain normalised by {first['stain']['method']}" if "stain" in first else ""
    names = " and ".join(str(record["encoder"]["name"]) for record in made_by)
    return f"{names} at {[f'{value:g}' for value in first['field_um']]} µm{stain}"


def _apart(one: Sequence[Record], other: Sequence[Record]) -> str:
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


def chosen_encoders(model: Predictor, encoder: AnyEncoder | Sequence[AnyEncoder] | None) -> tuple[Encoder, ...] | None:
    """The encoders to predict with: the user's, else the one that was fine-tuned with the model, else `None`."""
    if encoder is not None:
        return resolve_encoders(encoder)
    return None if model.tower is None else (model.tower,)


def _present(source: Sections, record: Record) -> NDArray[np.float32] | None:
    """A block of features that is there as a model wants it, or held by what is there; `None` otherwise."""
    if record["slot"] not in source.table.obsm:
        return None
    for block in _blocks(source, record["slot"]):
        for features, made_by in _held(*block):
            if same_features([made_by], [record]):
                return np.asarray(features, dtype=np.float32)
    return None


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
        raise ValueError(_was_changed(slot))
    kept = ("encoder", "stain", "n_features")
    return [
        (part, {"slot": slot, "field_um": [float(value) for value in made_by["field_um"]]}
        | {key: made_by[key] for key in kept if key in made_by})
        for part, made_by in blocks
    ]  # fmt: skip


def _held(features: NDArray[np.float32], record: Record) -> Iterator[Block]:
    """A block of features, and that of colour in it: in features of texture they are the first of each field."""
    yield features, record
    if record["encoder"]["kind"] == "texture":
        fields = features.reshape(len(features), len(record["field_um"]), -1)
        of_color = fields[..., :N_COLOR].reshape(len(features), -1)
        encoder = ColorEncoder(record["encoder"]["size_px"])
        yield of_color, {**record, "encoder": encoder.spec, "n_features": of_color.shape[1]}


def _identity(record: Record) -> str:
    return json.dumps([identity(record["encoder"]), record["field_um"], record.get("stain")], sort_keys=True)


def _stack(parts: list[NDArray[np.float32]], slot: str) -> NDArray[np.float32]:
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        msg = f"The objects have different numbers of image features in `obsm[{slot!r}]`: {widths}. Make all of them in the same way."
        raise ValueError(msg)
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        msg = (
            f"The image features in `obsm[{slot!r}]` hold values that are not finite (NaN or infinite). Remove these "
            "spots, or make the features again."
        )
        raise ValueError(msg)
    return features
