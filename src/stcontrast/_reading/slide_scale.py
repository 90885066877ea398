"""µm per pixel of a slide: given, stated or from the lattice; contradictions are said."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._keys import UNS
from stcontrast._reading.scale import (
    TOUCHING,
    Scale,
    find_lattice,
    positive_number,
    scale_from_spots,
)
from stcontrast._reading.sections import PerSlide, of_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stcontrast._reading.sections import Slide

__all__ = ["compare_slides", "with_scale"]

logger = logging.getLogger(__name__)

# µm per pixel from two sources that are farther apart contradict each other
CONTRADICTION: Final = 1.05
# widths of cells in µm, of nuclei to that of fat cells
CELL_UM: Final = (2.0, 80.0)
# spots that are as wide, in pitches, belong to one kind of array
SAME_FILL: Final = 0.04


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
