"""The H&E of one spot on one panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stcontrast.pp._crops import iter_crops

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = ["CROP_PX", "cut", "draw_crop"]

CROP_PX: Final = 160


def cut(slide: Slide, positions: Sequence[int], field_um: float) -> list[NDArray[np.uint8]]:
    """Crops of some spots of a slide that has an image and a scale, by position among its spots."""
    if slide.image is None or slide.um_per_px is None:  # `require_images` has refused these
        msg = f"Slide {slide.name!r} has no image."
        raise ValueError(msg)
    side = field_um / slide.um_per_px
    found = dict(iter_crops(slide.image, slide.centers[list(positions)], side=side, size_px=CROP_PX))
    return [found[i] for i in range(len(positions))]


def draw_crop(ax: Axes, crop: NDArray[np.uint8] | None, *, frame: Any = None) -> None:
    """Show a crop, in a frame of a colour; `None` leaves the panel empty."""
    if crop is not None:
        ax.imshow(crop, interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame is not None)
    if frame is not None:
        ax.spines[:].set(color=frame, linewidth=2.0)
    ax.set_facecolor("none")
