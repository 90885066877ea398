"""Features that a model wants of a slide: those that are there, or made."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._data import depth_of, warn_of_glass
from stcontrast._reading import middle_spots, require_images, spot_distance
from stcontrast.pp._encoders import resolve_encoders
from stcontrast.pp._features import FeatureSpec, feature_spec, join_records, pair_encoders
from stcontrast.tl._features.records import brief, describe, encoded, is_outdated, keep_features, present, same_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Sections, Slide
    from stcontrast.fitted import Predictor
    from stcontrast.pp._encoders import AnyEncoder, Encoder
    from stcontrast.tl._features.records import Record

__all__ = [
    "OTHER_SPACING",
    "chosen_encoders",
    "distance_um",
    "features_for",
    "plan_features",
    "seen_by",
    "spot_distance_um",
    "warn_of_spacing",
]

logger = logging.getLogger(__name__)

# spots that are so many times farther apart than those of training are another kind of spot
OTHER_SPACING: Final = 1.5

type Planned = NDArray[np.float32] | FeatureSpec
"""A block of features that is there, or what it is to be made with."""


def chosen_encoders(model: Predictor, encoder: AnyEncoder | Sequence[AnyEncoder] | None) -> tuple[Encoder, ...] | None:
    """The encoders to predict with: the user's, else the one that was fine-tuned with the model, else `None`."""
    if encoder is not None:
        return resolve_encoders(encoder)
    return None if model.tower is None else (model.tower,)


def plan_features(
    sources: Sequence[Sections], model: Predictor, encoder: AnyEncoder | Sequence[AnyEncoder] | None
) -> list[list[Planned]]:
    """The blocks of features that a model wants, for every object: those that are there, or what to make them with.

    Features that are there and no longer match their slide are to be made again, with a warning.

    Parameters
    ----------
    sources
        The user's objects.
    model
        The model.
    encoder
        What the user gave: one for every block that the user has not made, instead of those in the records.

    Raises
    ------
    ValueError
        If features are absent and cannot be made, or a slot was changed after it was written. Before any work.
    """
    made_by: Sequence[Record] = model.spec["image_features"]
    paired = pair_encoders(made_by, chosen_encoders(model, encoder))
    for record, chosen in zip(made_by, paired, strict=True):
        if record["encoder"]["kind"] == "tuned" and (chosen is None or chosen.spec != record["encoder"]):
            msg = "The model contains its own fine-tuned encoder, and cannot use another one: leave out `encoder`."
            raise ValueError(msg)
    warn_of_spacing(sources, model)
    warn_of_glass(source.table for source in sources)
    return [_planned(source, model, paired) for source in sources]


def _planned(source: Sections, model: Predictor, encoders: Sequence[Encoder | None]) -> list[Planned]:
    made_by: Sequence[Record] = model.spec["image_features"]
    there = [present(source, record) for record in made_by]
    slots = {str(record["slot"]) for record, block in zip(made_by, there, strict=True) if block is not None}
    changed = {slot for slot in sorted(slots) if is_outdated(source, slot)}
    planned: list[Planned] = []
    for record, block, encoder in zip(made_by, there, encoders, strict=True):
        slot = record["slot"]
        if block is not None and slot not in changed:
            planned.append(block)
            continue
        if record["encoder"]["kind"] == "given":
            found = brief(describe(source, slot)) if slot in source.table.obsm else "none"
            msg = (
                f"The model was trained on custom features in `obsm[{slot!r}]` "
                f"({record['n_features']} a spot), found {found}. Put features made the same way there."
            )
            raise ValueError(msg)
        if block is None:
            require_images(source, record["field_um"])
        planned.append(feature_spec(record, encoder=encoder, allow_download=model.allow_download))
    return planned


def spot_distance_um(sources: Sequence[Sections]) -> float | None:
    """Median distance in µm between neighbouring spots, over slides; `None` where no slide has a known scale."""
    known = [distance for source in sources for slide in source.slides if (distance := distance_um(slide)) is not None]
    return float(np.median(known)) if known else None


def distance_um(slide: Slide) -> float | None:
    """Distance in µm between neighbouring spots of a slide; `None` where it has no known scale, or one spot."""
    if slide.um_per_px is None or len(slide.centers) < 2:
        return None
    distance = spot_distance(middle_spots(slide.centers)) * slide.um_per_px
    return float(distance) if np.isfinite(distance) else None


def warn_of_spacing(sources: Sequence[Sections], model: Predictor) -> None:
    """Warn where spots lie much denser or sparser than those that the model was trained on."""
    trained = model.spec.get("spot_distance_um")
    if trained is None:
        return
    for source in sources:
        for slide in source.slides:
            here = distance_um(slide)
            if here is None or max(here, trained) < OTHER_SPACING * min(here, trained):
                continue
            logger.warning(
                "Slide %r: neighbouring spots are %.3g µm apart, and %.3g µm on the slides that the model was trained on. "
                "The model has learnt from spots at that distance, so predictions may be poor. Bin or grid the slide at the "
                "distance of the training, or train on slides like this one.", slide.name, here, trained,
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
        found = [encoded(source, [block], slot) if isinstance(block, FeatureSpec) else (block, {}) for block in blocks]
        parts.append(np.concatenate([part for part, _ in found], axis=1))
        made = [record for _, record in found if record]
        free = slot not in source.table.obsm
        if free or (len(made) == len(wanted) and same_features(describe(source, slot), wanted)):
            keep_features(source, parts[-1], join_records(made), slot)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def seen_by(source: Sections, model: Predictor) -> dict[str, Any]:
    """What a model sees of an object's spots beside their features: slide, position, and depth for an oracle."""
    slide, xy = source.slide_and_xy()
    return {
        "slide": slide,
        "xy": xy,
        "depth": depth_of(source) if model.method.oracle else None,
        "names": [item.name for item in source.slides],
    }
