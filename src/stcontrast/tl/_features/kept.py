"""Features in the slots of a table: whether they still match their slides, made again, written."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stcontrast._reading import obsm_array, require_images
from stcontrast._records import read_record, write_record
from stcontrast.pp._features import at_recorded_scale, changed_since, encode_spots, is_ours, same_scale, split_blocks
from stcontrast.tl._features.described import changed_by_user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.pp._features import FeatureSpec
    from stcontrast.tl._features.described import Record

__all__ = ["encoded", "is_outdated", "keep_features", "with_recorded_scale"]

logger = logging.getLogger(__name__)


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
