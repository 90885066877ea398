"""What the images of slides must be: there, large enough; which was chosen is logged."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

import pandas as pd

from stcontrast._reading.elements import share_inside
from stcontrast._reading.scale import (
    middle_spots,
    spot_distance,
)
from stcontrast._reading.sections import (
    PerSlide,
    Sections,
    no_positions,
    of_slide,
)
from stcontrast._reading.slide_scale import _of_lattice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stcontrast._reading.sections import Slide

__all__ = ["report_images", "require_images"]

logger = logging.getLogger(__name__)

# spots that are wider than this many distances to the next one lie on top of each other
OVERLAP: Final = 3.0
# rows that share their place with another, of all
SHARED_PLACES: Final = 0.05
# names of the small copies of a scan that Space Ranger and HEST-1k make
SMALL_COPY: Final = re.compile("hires|lowres|downscaled")
# sides of a crop: fewest pixels; largest in sides of the image
FEWEST_PX: Final = 2.0
WIDEST: Final = 2.0


def require_images(sections: Sections, fields_um: Iterable[float]) -> None:
    """Raise unless every slide has an image and a known µm per pixel: before any work is done.

    Parameters
    ----------
    sections
        The slides.
    fields_um
        Sides of the crops that are to be cut, in µm.

    Raises
    ------
    KeyError
        If an AnnData lacks the positions of its spots.
    ValueError
        If an image or µm per pixel is missing, or a field of view has less than 2 pixels, or is more than twice as wide as
        the image.
    """
    bare = [slide.name for slide in sections.slides if slide.image is None]
    if bare and not sections.is_spatialdata and "spatial" not in sections.table.obsm:
        raise KeyError(no_positions(sections.table))
    if bare:
        first = next(slide for slide in sections.slides if slide.image is None)
        why = f" ({first.name!r}: {first.no_image})" if first.no_image else ""
        msg = (
            f"No image lies under the spots of {bare} that is H&E{why}. Every slide needs an RGB image that shares a coordinate system "
            "with its shapes (`spatialdata.transformations.set_transformation`), or name it with `image_key`; "
            "an AnnData object holds it as scanpy does (`uns['spatial'][slide]['images']`). Or remove these slides. "
            "`stc.tl.fit` also learns the gene space from slides without an image, if they are separate objects."
        )
        raise ValueError(msg)
    unscaled = [slide.name for slide in sections.slides if slide.um_per_px is None]
    if unscaled:
        first = next(slide for slide in sections.slides if slide.um_per_px is None)
        msg = (
            f"µm per pixel is unknown for {unscaled}. {first.name!r}: {_of_lattice(first).source}. Give `um_per_px`: a number, "
            "or a mapping from slide to number. The file of the scan often says it (OME-TIFF: PhysicalSizeX). On an array it is the distance between neighbouring spots in µm (Visium 100, "
            "legacy ST 200, Visium HD the side of the bins) divided by that distance in pixels "
            f"({spot_distance(middle_spots(first.centers)):.4g} here). Or give `spot_diameter_um`: how wide the shapes are in µm. Space "
            "Ranger writes Visium spots 65 µm wide, not 55."
        )
        raise ValueError(msg)
    for slide in sections.slides:
        for field in fields_um:
            _check_field(slide, field)


def _check_field(slide: Slide, field_um: float) -> None:
    """Raise where a crop would have next to no pixels, or be next to all background."""
    if slide.image is None or slide.um_per_px is None:  # `require_images` has refused these
        return
    side = field_um / slide.um_per_px
    height, width = slide.image.levels[0].shape[1:]
    if FEWEST_PX <= side <= WIDEST * max(height, width):
        return
    wrong = f"less than {FEWEST_PX:g}" if side < FEWEST_PX else f"more than {WIDEST:g} times as wide as the image"
    msg = (
        f"Slide {slide.name!r}: at {slide.um_per_px:.4g} µm per pixel a field of {field_um:g} µm is {side:.4g} pixels wide, "
        f"{wrong}. Its image {slide.image.name!r} has {width} × {height} pixels. Check `um_per_px` (µm for one pixel of the "
        "image's finest level) and the field of view (in µm)."
    )
    raise ValueError(msg)


def report_images(slides: Sequence[Slide], *, chosen: PerSlide[str]) -> None:
    """Warn of spots beyond their image or on top of each other, and where only a small copy of the scan is there."""
    for slide in slides:
        if slide.image is None:
            continue
        height, width = slide.image.levels[0].shape[1:]
        inside = share_inside(slide.centers, (width, height))
        if inside < 1:
            logger.warning(
                "Slide %r: %d of %d spots (%.2g %%) lie beyond its image %r (%d × %d pixels). Outside the "
                "image, crops have the colour of empty glass.", slide.name, round((1 - inside) * len(slide.centers)), len(slide.centers),
                100 * (1 - inside), slide.image.name, width, height,
            )  # fmt: skip
        distance = spot_distance(middle_spots(slide.centers))
        if slide.diameter > OVERLAP * distance:
            logger.warning(
                "Slide %r: spots are %.3g pixels wide, and only %.3g pixels apart: they lie on top of each other. Are the positions "
                "those of the array (rows and columns), or in pixels of another image? They must be in pixels of the "
                "full-resolution image.", slide.name, slide.diameter, distance,
            )  # fmt: skip
        shared = pd.DataFrame(slide.centers).duplicated().to_numpy()
        if shared.mean() > SHARED_PLACES:
            logger.warning(
                "Slide %r: %d of %d spots lie exactly on another one. Does it hold several sections, or a section twice? Name the "
                "column that tells sections apart (AnnData: `library_key`), or give each its own shapes.",
                slide.name, int(shared.sum()), len(shared),
            )  # fmt: skip
        small = SMALL_COPY.search(slide.image.name)
        if small and slide.um_per_px is not None and of_slide(chosen, slide.name) is None:
            logger.warning(
                "Slide %r: only the %s image %r is there, %.3g µm per pixel: a field of 100 µm is %.0f pixels wide. The "
                "full-resolution image gives better features.", slide.name, small.group(), slide.image.name,
                slide.um_per_px, 100 / slide.um_per_px,
            )  # fmt: skip
