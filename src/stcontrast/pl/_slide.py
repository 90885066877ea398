"""One slide on one panel: H&E, spots, scale bar.

Drawn from the arrays that the package reads, not by spatialdata-plot. That package warns where a table annotates more
than one slide. It knows neither µm per pixel nor where the spots lie in the picture, and shows the whole scan.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dask.array as da
import numpy as np

from stcontrast._reading import spot_distance
from stcontrast.pp._crops import pick_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = ["MISSING", "Picture", "draw_picture", "draw_scale_bar", "draw_spots", "read_picture", "scale_bar_um"]

logger = logging.getLogger(__name__)

# pixels of the longer side: sharp at 300 dots an inch in a panel of four inches
PICTURE_PX: Final = 1200
# the tissue is visible through the spots
SPOT_ALPHA: Final = 0.85
MISSING: Final = "#595959"
MARGIN: Final = 0.04
SCALE_BAR_SHARE: Final = 1 / 3
RASTERIZE_ABOVE: Final = 5000


class Picture(NamedTuple):
    """The part of a slide that is shown.

    Attributes
    ----------
    low, high
        Corners of the view, x and y, in the units of the slide's centres.
    pixels
        H&E (height, width, 3), uint8; `None` if the slide has none.
    extent
        Where the pixels lie: left, right, bottom, top.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    pixels: NDArray[np.uint8] | None
    extent: tuple[float, float, float, float]

    @property
    def aspect(self) -> float:
        """Ratio of height to width."""
        width, height = self.high - self.low
        return float(height / width)


def read_picture(slide: Slide, *, max_px: int = PICTURE_PX) -> Picture:
    """Read the H&E around the spots of a slide, averaged down to `max_px` pixels at most."""
    radius = _diameter(slide) / 2
    low, high = slide.centers.min(axis=0) - radius, slide.centers.max(axis=0) + radius
    margin = max(2 * radius, MARGIN * float((high - low).max()))
    if slide.image is None:
        low, high = low - margin, high + margin
        return Picture(low, high, None, (low[0], high[0], high[1], low[1]))
    size = np.array(slide.image.levels[0].shape[:0:-1], dtype=np.float64)
    low, high = np.minimum(low, np.maximum(low - margin, 0)), np.maximum(high, np.minimum(high + margin, size))

    level = pick_level(slide.image, float((high - low).max()) / max_px)
    factor, pixels = slide.image.downsampling[level], slide.image.levels[level]
    origin = np.array(slide.image.origin(level))
    limit = np.array(pixels.shape[:0:-1])
    x0, y0 = np.clip(np.floor((low - origin) / factor).astype(int), 0, limit)
    x1, y1 = np.clip(np.ceil((high - origin) / factor).astype(int), 0, limit)
    block = pixels[:, y0:y1, x0:x1]
    step = int(np.ceil(max(block.shape[1:]) / max_px))
    # chunk by chunk: a scan of gigabytes is never in memory as a whole
    coarse = da.coarsen(np.mean, block, {1: step, 2: step}, trim_excess=True) if step > 1 else block
    shown = np.moveaxis(np.rint(np.asarray(coarse)).astype(np.uint8), 0, -1)
    height, width = shown.shape[:2]
    left, top = origin + factor * np.array([x0, y0])
    return Picture(low, high, shown, (left, left + width * step * factor, top + height * step * factor, top))


def draw_picture(ax: Axes, picture: Picture, *, title: str) -> None:
    """Show the H&E and frame the view."""
    if picture.pixels is not None:
        ax.imshow(picture.pixels, extent=picture.extent, origin="upper", interpolation="antialiased")
    (left, top), (right, bottom) = picture.low, picture.high
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set(color="0.8", linewidth=0.6)
    ax.set_title(title, loc="left", fontsize=10)


def draw_spots(ax: Axes, slide: Slide, known: NDArray[np.bool_], **colors: Any) -> PolyCollection:
    """Fill the spots whose value or class is known with `colors` (options of a collection); outline the others."""
    from matplotlib.patheffects import withStroke

    if not known.all():
        outlines = _fill(ax, slide, ~known, facecolors="none", edgecolors=MISSING)
        # thinner if spots are many and small; the white halo keeps grey visible on purple
        width = min(1.0, 15 / np.sqrt(len(known)))
        outlines.set(linewidth=width, alpha=1.0, path_effects=[withStroke(linewidth=2.2 * width, foreground="white")])
    return _fill(ax, slide, known, **colors)


def draw_scale_bar(ax: Axes, slide: Slide) -> None:
    """Draw a bar of a round length under the panel; none where µm per pixel is unknown."""
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

    if slide.um_per_px is None:
        logger.info("%s: no scale bar, µm per pixel is unknown. Give `um_per_px`.", slide.name)
        return
    left, right = ax.get_xlim()
    length_um = scale_bar_um((right - left) * slide.um_per_px)
    bar = AnchoredSizeBar(
        ax.transData,
        length_um / slide.um_per_px,
        f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm",
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=ax.transAxes,
        borderpad=0.0,
        pad=0.3,
        sep=3,
        frameon=False,
        size_vertical=0.008 * (right - left),
        fill_bar=True,
        fontproperties={"size": 8},
    )
    ax.add_artist(bar)


def scale_bar_um(width_um: float) -> float:
    """The longest of 1, 2, 5, 10, ... µm that takes a third of the width at most."""
    longest = SCALE_BAR_SHARE * width_um
    decade = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * decade for step in (1, 2, 5) if step * decade <= longest * (1 + 1e-9)))


def _diameter(slide: Slide) -> float:
    if np.isfinite(slide.diameter) and slide.diameter > 0:
        return slide.diameter
    pitch = spot_distance(slide.centers)
    return 0.55 * pitch if np.isfinite(pitch) else 1.0


def _polygons(slide: Slide, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    diameter = _diameter(slide)
    # bins touch each other, round spots never do
    touching = diameter > 0.9 * spot_distance(slide.centers)
    n_corners = 4 if touching else 36
    angle = 2 * np.pi * (np.arange(n_corners) + 0.5) / n_corners
    corner = np.column_stack([np.cos(angle), np.sin(angle)]) * diameter / 2 * (np.sqrt(2) if touching else 1.0)
    return slide.centers[chosen, None, :] + corner


def _fill(ax: Axes, slide: Slide, chosen: NDArray[np.bool_], **colors: Any) -> PolyCollection:
    from matplotlib.collections import PolyCollection

    polygons: Any = _polygons(slide, chosen)
    filled = PolyCollection(
        polygons,
        alpha=SPOT_ALPHA,
        linewidths=0,
        rasterized=len(chosen) > RASTERIZE_ABOVE,
        **colors,
    )
    ax.add_collection(filled, autolim=False)
    return filled
