"""Features to learn from: those that are there, or made and kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._keys import IMAGE_FEATURES
from stcontrast._reading import obsm_array, require_images
from stcontrast._records import read_record
from stcontrast.pp._encoders import ColorEncoder, TextureEncoder
from stcontrast.pp._features import DEFAULT_FIELDS_UM, FeatureSpec, encode_spots, feature_spec, pair_encoders
from stcontrast.tl._features.records import (
    apart,
    block_widths,
    brief,
    describe,
    encoded,
    held,
    is_outdated,
    keep_features,
    same_features,
)
from stcontrast.tl._features.to_predict import OTHER_SPACING, distance_um

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._reading import Sections
    from stcontrast.pp._encoders import Encoder
    from stcontrast.tl._features.records import Record

__all__ = ["check_slots", "color_features", "features_to_fit", "parse_slots", "warn_of_mixed_spots"]

logger = logging.getLogger(__name__)

# slots of scanpy, scvi-tools and methods of integration, and the positions
OF_GENES: Final = re.compile(
    r"spatial|X_(?:pca|umap|tsne|diffmap|draw_graph|phate|scvi|scanvi|mrvi|totalvi|resolvi|scviva|destvi|linear_?scvi|harmony|"
    r"scanorama|bbknn|lsi|nmf|lda|scgpt|geneformer|uce|nicheformer|novae|stagate|spagcn|graphst|banksy|cellcharter)(?:_.*)?",
    re.IGNORECASE,
)


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
            f"`encoder` and `field_um` say how `obsm[{IMAGE_FEATURES!r}]` is made, and `use_rep` is {use_rep!r}: leave out "
            "one of them. `stc.pp.image_features(..., key_added=...)` makes the features of another slot."
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
        If features cannot be made, are those of a fine-tuned encoder, or were made of the counts.
    """
    for slot in slots:
        _check_not_of_genes([source.table for source in sources], slot)
    for source in sources:
        for slot in slots:
            if slot in source.table.obsm:
                if any(record["encoder"]["kind"] == "tuned" for record in describe(source, slot)):
                    msg = (
                        f"`use_rep`: `obsm[{slot!r}]` was made by an encoder that was fine-tuned on the expression of other "
                        "spots, perhaps of these: held-out spots would not be held out. Give "
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


def _check_not_of_genes(tables: Sequence[AnnData], slot: str) -> None:
    """Raise where a slot was made of the counts, which would be predicted from themselves; warn where its name says so."""
    for table in tables:
        embedding, _, side = slot.rpartition("_")
        if slot not in table.obsm:
            continue
        if read_record(table, "embed_genes", slot) is not None:
            made_by = "`stc.tl.embed_genes` or `stc.tl.fit`, of the counts"
        elif side in ("image", "gene") and read_record(table, "embedding", embedding) is not None:
            made_by = "a model that has learnt from counts, perhaps from these"
        elif slot == "X_pca" and "PCs" in table.varm and np.shape(table.varm["PCs"])[1] == table.obsm[slot].shape[1]:
            made_by = "`scanpy.pp.pca`, of the counts"
        else:
            continue
        msg = (
            f"`use_rep`: `obsm[{slot!r}]` was made by {made_by}. Expression would be predicted from itself, and H&E alone "
            "does not have such features. Name features of the image."
        )
        raise ValueError(msg)
    if any(slot in table.obsm for table in tables) and OF_GENES.fullmatch(slot):
        logger.warning(
            "`use_rep`: by its name `obsm[%r]` holds %s. If so, scores mean nothing, because H&E alone does not have them. Name "
            "features of the image, or rename the slot.",
            slot, "positions" if slot == "spatial" else "a representation of the expression",
        )  # fmt: skip


def warn_of_mixed_spots(sources: Sequence[Sections]) -> None:
    """Say at WARNING where neighbouring spots of some training slides are much farther apart than those of others."""
    of_slide = [(distance_um(slide), slide.name) for source in sources for slide in source.slides]
    known = sorted((distance, name) for distance, name in of_slide if distance is not None)
    if known and known[-1][0] >= OTHER_SPACING * known[0][0]:
        logger.warning(
            "Neighbouring spots are %.3g µm apart on slide %r, and %.3g µm on slide %r. Spots of two sizes differ in depth and in "
            "what their neighbours show, and the model treats them alike. Bin them to the same distance, or fit two models.",
            *known[0], *known[-1],
        )  # fmt: skip


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
                keep_features(source, *encoded(source, specs, slot), slot)
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
                "treated as custom features. The model will need features made in the same way, in the same slot, for every "
                "new slide. If `stc.pp.image_features` made them, call it again on the joined object (`overwrite=True`) or "
                "give the objects as a list.",
                IMAGE_FEATURES, [slide.name for source in sources for slide in source.slides][:5], record["n_features"],
            )  # fmt: skip


def _outdated(source: Sections, slot: str, *, encoders: Sequence[Encoder] | None) -> list[FeatureSpec]:
    """What to make the features of a slot with again; empty where they still match what they were made of."""
    made_by = describe(source, slot)
    if made_by[0]["encoder"]["kind"] == "given" or not is_outdated(source, slot):
        return []
    return [
        feature_spec(record, encoder=encoder)
        for record, encoder in zip(made_by, pair_encoders(made_by, encoders), strict=True)
    ]


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
                f"`obsm[{slot!r}]` holds {brief(there)}, but {brief(asked)} were asked for{apart(there, asked)}. Call "
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
        for block, of_block in held(features[:, start : start + width], record):
            if of_block["encoder"]["kind"] == "color":
                return block, [of_block]
        start += width
    fields = next((tuple(record["field_um"]) for record in made_by if record["field_um"]), DEFAULT_FIELDS_UM)
    for source in sources:
        require_images(source, fields)
    spec = FeatureSpec(ColorEncoder(), fields)
    found = _stack([encode_spots(source, [spec])[0] for source in sources], IMAGE_FEATURES)
    return found, [{"slot": IMAGE_FEATURES, **spec.record, "n_features": found.shape[1]}]


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
