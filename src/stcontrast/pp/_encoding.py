"""From slides to features: crops of all fields in one pass, encoded while the next are cut."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast.pp._crops.prefetch import prefetched
from stcontrast.pp._crops.reader import iter_batches
from stcontrast.pp._encoders.resolve import encoder_from_spec
from stcontrast.pp._stain import stain_from_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Slide, SlideImage
    from stcontrast.pp._encoders.resolve import Encoder
    from stcontrast.pp._stain import StainNormalizer

__all__ = ["FeatureRecipe", "encode_centers", "encode_slides", "recipe_of"]

logger = logging.getLogger(__name__)

# crops that an encoder is given at once
BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class FeatureRecipe:
    """What image features are made with.

    Attributes
    ----------
    encoder
        The encoder.
    fields_um
        Sides of the crops in µm.
    stain
        How the stain is normalised before encoding; `None` if it is not.
    """

    encoder: Encoder
    fields_um: tuple[float, ...]
    stain: StainNormalizer | None = None

    @property
    def record(self) -> dict[str, Any]:
        """It as plain values, to be written beside the features."""
        record = {"encoder": self.encoder.spec, "field_um": [float(value) for value in self.fields_um]}
        return record if self.stain is None else record | {"stain": self.stain.spec}

    def sides(self, um_per_px: float) -> list[float]:
        """Sides of the crops in pixels."""
        return [field / um_per_px for field in self.fields_um]


def recipe_of(record: Mapping[str, Any], *, encoder: Encoder | None = None) -> FeatureRecipe:
    """What a record says that features are made with; `encoder` where the record cannot bring it back."""
    stain = stain_from_spec(record["stain"]) if record.get("stain") else None
    return FeatureRecipe(encoder or encoder_from_spec(record["encoder"]), tuple(record["field_um"]), stain)


def encode_slides(
    slides: Sequence[Slide], recipe: FeatureRecipe
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.float32]]]:
    """Encode the spots of slides, on the workers of a running dask client if there is one.

    Parameters
    ----------
    slides
        Slides with an image and known µm per pixel.
    recipe
        What the features are made with.

    Yields
    ------
    Position of a slide, of some of its spots (n,), and their features (n, n_fields × n_features).
    """
    from stcontrast.pp._cluster import encode_on_cluster, running_client

    for slide in slides:
        _warn_if_enlarged(slide, recipe)
    client = running_client()
    if client is not None:
        yield from encode_on_cluster(client, slides, recipe)
        return
    for code, slide in enumerate(slides):
        if slide.image is None or slide.um_per_px is None:  # refused at the boundary
            continue
        for rows, features in encode_centers(slide.image, slide.centers, slide.um_per_px, recipe):
            yield code, rows, features


def encode_centers(
    image: SlideImage, centers: NDArray[np.float64], um_per_px: float, recipe: FeatureRecipe
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Encode the squares around some points of one slide.

    Parameters
    ----------
    image
        The slide; its stain is estimated from the whole of it, whatever the points.
    centers
        x, y in pixels of its finest level (n_spots, 2).
    um_per_px
        µm per pixel of that level.
    recipe
        What the features are made with.

    Yields
    ------
    Positions of points (n,) and their features (n, n_fields × n_features), in the order in which the image is read.

    Raises
    ------
    ValueError
        If the encoder returns something else than finite features of one shape.
    """
    stain = None if recipe.stain is None else recipe.stain.fit_slide(image)
    encoder, n_fields = recipe.encoder, len(recipe.fields_um)
    batches = iter_batches(
        image, centers, sides=recipe.sides(um_per_px), size_px=encoder.size_px, batch=max(1, BATCH // n_fields)
    )
    width = None
    with closing(prefetched(batches)) as ahead:
        for rows, crops in ahead:
            flat = crops.reshape(-1, *crops.shape[2:])
            features = encoder(flat if stain is None else stain.apply(flat))
            width = features.shape[-1] if width is None else width
            if features.shape != (len(flat), width):
                msg = (
                    f"The encoder {encoder.spec['name']!r} returned shape {features.shape} for {len(flat)} crops, "
                    f"expected ({len(flat)}, {width})."
                )
                raise ValueError(msg)
            if not np.isfinite(features).all():
                msg = f"The encoder {encoder.spec['name']!r} returned values that are not finite."
                raise ValueError(msg)
            yield rows, np.asarray(features, dtype=np.float32).reshape(len(rows), n_fields * width)


def _warn_if_enlarged(slide: Slide, recipe: FeatureRecipe) -> None:
    size_px = recipe.encoder.size_px
    for field, side in zip(recipe.fields_um, recipe.sides(slide.um_per_px or np.inf), strict=True):
        if side < size_px / 4:
            logger.warning(
                "Slide %s: a field of %g µm is only %.0f pixels wide, enlarged to %d.", slide.name, field, side, size_px
            )
