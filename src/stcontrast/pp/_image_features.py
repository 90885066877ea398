"""Image features: crops at several fields of view through a frozen encoder, cached in the table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast import __version__
from stcontrast._keys import IMAGE_FEATURES, UNS
from stcontrast._progress import progress
from stcontrast._spots import require_images, resolve_slides
from stcontrast.pp._encoders import resolve_encoder
from stcontrast.pp._reader import iter_crops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._spots import Slide, Spots
    from stcontrast.pp._encoders import Encoder

__all__ = ["encode_spots", "feature_record", "image_features", "parse_fields"]

logger = logging.getLogger(__name__)

BATCH = 64
DEFAULT_FIELDS_UM = (100.0, 200.0, 400.0, 800.0)


def image_features(  # noqa: PLR0913
    data: SpatialData | AnnData,
    *,
    encoder: str | Encoder | Callable[[NDArray[np.uint8]], Any] = "texture",
    field_um: float | Sequence[float] = DEFAULT_FIELDS_UM,
    weights: str | Path | None = None,
    pretrained: bool = True,
    size_px: int | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    key_added: str = IMAGE_FEATURES,
) -> None:
    """Encode the H&E around every spot with a frozen encoder.

    Each field of view is cut in µm (:func:`crops`), brought to the encoder's input size and encoded; the features
    of all fields are set side by side. Nothing is fitted: a spot's features depend on its own crops alone.

    Parameters
    ----------
    data
        SpatialData whose table annotates the spots; or AnnData with scanpy's images in ``uns["spatial"]``.
    encoder
        ``"texture"`` (statistics of colour, stain and texture, no weights, the default), ``"color"`` (without those of
        texture), the name of a timm model, an :class:`Encoder` such as :class:`TimmEncoder`, or any callable from uint8 crops (n, size_px, size_px, 3) to
        features (n, n_features).
    field_um
        Side of the crops in µm: one or several fields of view.
    weights
        timm: local safetensors or pth file instead of a download. Weights with their own input normalisation:
        pass ``TimmEncoder(name, weights=..., mean=..., std=...)``.
    pretrained
        timm: download its weights. `False` without `weights` leaves the network random.
    size_px
        Side of the encoder's input in pixels; the encoder's own by default (callables: 224).
    um_per_px
        µm per pixel of the image's finest level, a number or a mapping from slide to number; see :func:`crops`.
    spot_diameter_um
        Diameter of a spot in µm, to derive µm per pixel from: 55 for Visium, 100 for legacy ST.
    table_key
        Table that holds the spots; the only one by default.
    image_key
        Image, or a mapping from slide to image; the finest RGB image under the spots by default. AnnData:
        ``"hires"`` or ``"lowres"``.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    key_added
        Slot of `obsm` to write.

    Returns
    -------
    `None`. Writes ``obsm[key_added]``, float32 (n_spots, n_features); and ``uns["stcontrast"]["image_features"]``:
    encoder, fields in µm, µm/px of each slide, version (``uns["stcontrast"][key_added]`` where `key_added` is not
    the default, so that a second set of features does not pass for the first).

    Raises
    ------
    KeyError, ValueError
        As :func:`crops`, before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> stc.pp.image_features(sdata, field_um=(100, 200))
    >>> sdata["table"].obsm["X_image"].shape
    (30, 126)
    """
    fields = parse_fields(field_um)
    spots = resolve_slides(
        data,
        table_key=table_key,
        image_key=image_key,
        um_per_px=um_per_px,
        spot_diameter_um=spot_diameter_um,
        library_key=library_key,
    )
    require_images(spots)
    chosen = resolve_encoder(encoder, weights=weights, pretrained=pretrained, size_px=size_px)
    spots.table.obsm[key_added] = encode_spots(spots, chosen, fields)
    record_key = "image_features" if key_added == IMAGE_FEATURES else key_added
    spots.table.uns.setdefault(UNS, {})[record_key] = feature_record(spots, chosen, fields)


def encode_spots(spots: Spots, encoder: Encoder, fields: tuple[float, ...]) -> NDArray[np.float32]:
    """Features (n_spots, n_fields × n_features) of all slides, in the table's order."""
    parts: list[NDArray[np.float32]] = []
    with progress(total=spots.table.n_obs * len(fields), description="image features", unit="crop") as bar:
        for field_um in fields:
            part: NDArray[np.float32] | None = None
            for slide in spots.slides:
                for rows, features in _encode_slide(slide, encoder, field_um):
                    if part is None:
                        part = np.empty((spots.table.n_obs, features.shape[-1]), dtype=np.float32)
                    if features.shape != (len(rows), part.shape[1]):
                        msg = (
                            f"The encoder {encoder.spec['name']!r} returned shape {features.shape} for {len(rows)} crops, "
                            f"expected ({len(rows)}, {part.shape[1]})."
                        )
                        raise ValueError(msg)
                    part[rows] = features
                    bar.update(len(rows))
            if part is not None:
                parts.append(part)
    features = np.concatenate(parts, axis=1)
    if not np.isfinite(features).all():
        msg = f"The encoder {encoder.spec['name']!r} returned values that are not finite."
        raise ValueError(msg)
    return features


def feature_record(spots: Spots, encoder: Encoder, fields: tuple[float, ...]) -> dict[str, Any]:
    """What is written beside the features, and compared when they are used again."""
    return {
        "encoder": encoder.spec,
        "field_um": [float(value) for value in fields],
        "um_per_px": {slide.name: float(slide.um_per_px or np.nan) for slide in spots.slides},
        "version": __version__,
    }


def _encode_slide(slide: Slide, encoder: Encoder, field_um: float) -> Any:
    if slide.image is None or slide.um_per_px is None:  # require_images has refused these
        return
    side = field_um / slide.um_per_px
    if side < encoder.size_px / 4:
        logger.warning(
            "Slide %s: a field of %g µm is only %.0f pixels wide, enlarged to %d.",
            slide.name, field_um, side, encoder.size_px,
        )  # fmt: skip
    rows: list[int] = []
    batch: list[NDArray[np.uint8]] = []
    for i, crop in iter_crops(slide.image, slide.centers, side=side, size_px=encoder.size_px):
        rows.append(slide.rows[i])
        batch.append(crop)
        if len(batch) == BATCH:
            yield np.array(rows), encoder(np.stack(batch))
            rows, batch = [], []
    if batch:
        yield np.array(rows), encoder(np.stack(batch))


def parse_fields(field_um: float | Sequence[float]) -> tuple[float, ...]:
    """One or several fields of view in µm, checked."""
    fields = (float(field_um),) if np.isscalar(field_um) else tuple(float(value) for value in field_um)
    if not fields or not all(np.isfinite(value) and value > 0 for value in fields):
        msg = f"`field_um` must be one or several positive numbers (µm), found {field_um!r}."
        raise ValueError(msg)
    return fields
