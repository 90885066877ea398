"""The scale of slides, and what their images must be: there, large enough; what was chosen is logged."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from stcontrast._keys import UNS
from stcontrast._reading.elements import share_inside
from stcontrast._reading.scale import (
    TOUCHING,
    Scale,
    find_lattice,
    middle_spots,
    positive_number,
    scale_from_spots,
    spot_distance,
)
from stcontrast._reading.sections import (
    PerSlide,
    Sections,
    no_positions,
    of_slide,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stcontrast._reading.sections import Slide

__all__ = ["compare_slides", "report_images", "require_images", "with_scale"]

logger = logging.getLogger(__name__)

# µm per pixel from two sources that are farther apart contradict each other
CONTRADICTION: Final = 1.05
# widths of cells in µm, of nuclei to that of fat cells
CELL_UM: Final = (2.0, 80.0)
# spots that are as wide, in pitches, belong to one kind of array
SAME_FILL: Final = 0.04
# spots that are wider than this many distances to the next one lie on top of each other
OVERLAP: Final = 3.0
# rows that share their place with another, of all
SHARED_PLACES: Final = 0.05
# names of the small copies of a scan that Space Ranger and HEST-1k make
SMALL_COPY: Final = re.compile("hires|lowres|downscaled")
# sides of a crop: fewest pixels; largest in sides of the image
FEWEST_PX: Final = 2.0
WIDEST: Final = 2.0


def with_scale(slide: Slide, *, given: float | None, stored: PerSlide[float], spot_diameter_um: float | None) -> Slide:
    """A slide with its µm per pixel; a value that contradicts what else is known of it is warned of."""
    known = [scale for scale in (slide.stated, _of_lattice(slide)) if scale is not None and scale.um_per_px is not None]
    scale = _given_scale(slide, given=given, stored=stored, spot_diameter_um=spot_diameter_um)
    if scale is None and known:
        scale = known[0]
        logger.log(
            logging.WARNING if scale.assumed else logging.INFO, "%s: %.4g µm per pixel, from %s.%s", slide.name,
            scale.um_per_px, scale.source,
            " This is assumed: other arrays may look alike. If it is one of them, give `um_per_px`." if scale.assumed else "",
        )  # fmt: skip
    if scale is None or scale.um_per_px is None:
        return slide
    for other in known:
        if other.um_per_px is not None and _differ(scale.um_per_px, other.um_per_px):
            logger.warning(
                "Slide %r: %.4g µm per pixel (%s), but %s gives %.4g. Crops are cut with %.4g. Check `um_per_px`: it "
                "must be the scale of the image that is read (%s).", slide.name, scale.um_per_px, scale.source, other.source,
                other.um_per_px, scale.um_per_px, "none" if slide.image is None else slide.image.name,
            )  # fmt: skip
    width = slide.diameter * scale.um_per_px
    if not slide.one_size and not CELL_UM[0] <= width <= CELL_UM[1]:
        logger.warning(
            "Slide %r: the shapes have different sizes, as cells do, and are %.3g µm wide at %.4g µm per pixel (%s; median). Cells "
            "are 5 to 30 µm wide: check `um_per_px`. If the shapes are regions, all is well.", slide.name, width,
            scale.um_per_px, scale.source,
        )  # fmt: skip
    return replace(slide, um_per_px=scale.um_per_px, scale_derived=scale in known)


def _given_scale(
    slide: Slide, *, given: float | None, stored: PerSlide[float], spot_diameter_um: float | None
) -> Scale | None:
    """µm per pixel as the user gave it, now or before."""
    if given is not None:
        return Scale(positive_number(given, f"`um_per_px` of slide {slide.name!r}"), "`um_per_px`")
    if spot_diameter_um is not None:
        if not np.isfinite(slide.diameter) or slide.diameter <= 0:
            return None
        source = f"`spot_diameter_um={spot_diameter_um:g}`, spots {slide.diameter:.1f} px wide"
        return Scale(spot_diameter_um / slide.diameter, source)
    kept = of_slide(stored, slide.name)
    if kept is None:
        return None
    return Scale(positive_number(kept, f"`um_per_px` of slide {slide.name!r}"), f"`uns['{UNS}']['um_per_px']`")


def _of_lattice(slide: Slide) -> Scale:
    return scale_from_spots(slide.centers, slide.diameter, one_size=slide.one_size)


def _differ(one: float, other: float) -> bool:
    return max(one, other) / min(one, other) > CONTRADICTION


def compare_slides(slides: Sequence[Slide]) -> None:
    """Warn of a slide on whose array neighbours are farther apart, in µm, than on another of the same kind."""
    pitches = []
    for slide in slides:
        lattice = find_lattice(slide.centers) if slide.um_per_px is not None and slide.one_size else None
        # bins that touch come in several sizes
        if lattice is not None and slide.um_per_px is not None and slide.diameter < TOUCHING * lattice.pitch:
            kind = lattice.neighbors, round(slide.diameter / lattice.pitch / SAME_FILL)
            pitches.append((kind, lattice.pitch * slide.um_per_px, slide))
    for kind in {kind for kind, _, _ in pitches}:
        alike = [(pitch, slide) for other, pitch, slide in pitches if other == kind]
        usual = sorted(pitch for pitch, _ in alike)[len(alike) // 2]
        odd = [(pitch, slide) for pitch, slide in alike if _differ(pitch, usual)]
        if odd:
            logger.warning(
                "The slides have arrays of one kind, but at their µm per pixel neighbouring spots are %s µm apart on %s and "
                "%.4g µm on the others. One `um_per_px` is wrong, or they are different platforms.",
                [float(f"{pitch:.4g}") for pitch, _ in odd], [slide.name for _, slide in odd], usual,
            )  # fmt: skip


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
