"""One slide on one panel: H&E, spots, scale bar.

Drawn from the arrays that the package reads, not by spatialdata-plot. That package warns where a table annotates more
than one slide. It knows neither µm per pixel nor where the spots lie in the picture, and shows the whole scan.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from stcontrast._reading import spot_distance
from stcontrast.pl._colors import ink
from stcontrast.pp._crops import shrunk_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = [
    "MISSING",
    "Picture",
    "View",
    "common_views",
    "draw_bar",
    "draw_picture",
    "draw_scale_bar",
    "draw_spots",
    "read_picture",
    "scale_bar_um",
]

logger = logging.getLogger(__name__)

type View = tuple[NDArray[np.float64], NDArray[np.float64]]
type Outlines = list[NDArray[np.float64]] | None

# pixels of the longer side: sharp at 300 dots an inch in a panel of four inches
PICTURE_PX: Final = 1200
MISSING: Final = "#595959"
EDGE_COLOR: Final = "#333333"
# width of the edges in points, and the spots that have them in full
EDGE_PT: Final = 0.3
EDGE_SPOT_PT: Final = 4.0
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


def common_views(slides: Sequence[Slide]) -> list[View]:
    """What to show of every slide: all views have the same size in µm, that of the largest slide.

    A slide whose µm per pixel are unknown fills a view of that shape.
    """
    own = [_own_view(slide) for slide in slides]
    known = [(high - low) * slide.um_per_px for slide, (low, high) in zip(slides, own, strict=True) if slide.um_per_px]
    size = np.max(known or [(high - low) / (high - low).max() for low, high in own], axis=0)
    views = []
    for slide, (low, high) in zip(slides, own, strict=True):
        half = size / (2 * slide.um_per_px) if slide.um_per_px else size * ((high - low) / size).max() / 2
        middle = (low + high) / 2
        views.append((middle - half, middle + half))
    return views


def _own_view(slide: Slide) -> View:
    """The spots of a slide and a margin, which ends with the image."""
    radius = _diameter(slide) / 2
    low, high = slide.centers.min(axis=0) - radius, slide.centers.max(axis=0) + radius
    margin = max(2 * radius, MARGIN * float((high - low).max()))
    if slide.image is None:
        return low - margin, high + margin
    size = np.array(slide.image.levels[0].shape[:0:-1], dtype=np.float64)
    return np.minimum(low, np.maximum(low - margin, 0)), np.maximum(high, np.minimum(high + margin, size))


def read_picture(slide: Slide, view: View | None = None, *, max_px: int = PICTURE_PX) -> Picture:
    """Read the H&E of a view, by default that around the spots, averaged down to `max_px` pixels at most."""
    low, high = _own_view(slide) if view is None else view
    if slide.image is None:
        return Picture(low, high, None, (low[0], high[0], high[1], low[1]))

    pixels, extent = shrunk_image(slide.image, low, high, max_px=max_px)
    return Picture(low, high, pixels, extent)


def draw_picture(ax: Axes, picture: Picture, *, img_alpha: float = 1.0) -> None:
    """Show the view, and the H&E in it, which fades to white as `img_alpha` falls."""
    if picture.pixels is not None:
        ax.imshow(
            picture.pixels, extent=picture.extent, origin="upper", interpolation="antialiased", alpha=img_alpha, zorder=0
        )  # fmt: skip
    (left, top), (right, bottom) = picture.low, picture.high
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[], xlabel="", ylabel="")
    # a slide is light on a dark page, too
    ax.set_facecolor("white")
    ax.spines[:].set_visible(False)


def draw_spots(
    ax: Axes,
    slide: Slide,
    known: NDArray[np.bool_],
    *,
    outlines: Outlines = None,
    size: float = 1.0,
    alpha: float = 1.0,
    **colors: Any,
) -> PolyCollection:
    """Fill the spots whose value or class is known with `colors` (options of a collection); outline the others.

    Parameters
    ----------
    ax, slide
        The panel, which shows its view already, and the slide.
    known
        The spots to fill (n_spots,).
    outlines
        Corners of every spot; circles or squares as wide as `slide.diameter` by default.
    size
        Width of a spot, in its true widths.
    alpha
        Opacity of the spots.
    **colors
        Colours of those that are filled.
    """
    from matplotlib.patheffects import withStroke

    corners = _corners(slide, outlines, size=size)
    width = _edge_width(ax, _diameter(slide) * size)
    if not known.all():
        missing = _fill(ax, corners, ~known, facecolors="none", edgecolors=MISSING)
        # the white halo keeps grey visible on purple
        thin = max(2 * width, 0.15)
        missing.set(linewidth=thin, path_effects=[withStroke(linewidth=2.2 * thin, foreground="white")])
    drawn = _fill(ax, corners, known, alpha=alpha, edgecolors=EDGE_COLOR, **colors)
    drawn.set_linewidth(width)
    return drawn


def draw_scale_bar(ax: Axes, slide: Slide) -> None:
    """Draw a bar of a round length under the panel; none where µm per pixel is unknown."""
    if slide.um_per_px is None:
        logger.info("%s: no scale bar, µm per pixel is unknown. Give `um_per_px`.", slide.name)
        return
    draw_bar(ax, slide.um_per_px)


def draw_bar(ax: Axes, um_per_unit: float) -> None:
    """Draw a bar of a round length under a panel whose unit of x is so many µm."""
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

    left, right = ax.get_xlim()
    length_um = scale_bar_um((right - left) * um_per_unit)
    bar = AnchoredSizeBar(
        ax.transData,
        length_um / um_per_unit,
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
        color=ink(cast("Figure", ax.get_figure(root=True))),
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


def _edge_width(ax: Axes, diameter: float) -> float:
    """Width of the edges in points: thin, and thinner where spots are small on the page."""
    left, right = ax.get_xlim()
    figure = cast("Figure", ax.get_figure(root=True))
    spot_pt = diameter / abs(right - left) * ax.get_window_extent().width / figure.dpi * 72
    return EDGE_PT * float(np.clip(spot_pt / EDGE_SPOT_PT, 0.0, 1.0)) if spot_pt > 1 else 0.0


def _corners(slide: Slide, outlines: Outlines, *, size: float) -> list[NDArray[np.float64]] | NDArray[np.float64]:
    if outlines is not None:
        return [center + size * (one - center) for one, center in zip(outlines, slide.centers, strict=True)]
    diameter = _diameter(slide)
    # bins touch each other, round spots never do
    touching = diameter > 0.9 * spot_distance(slide.centers)
    n_corners = 4 if touching else 36
    angle = 2 * np.pi * (np.arange(n_corners) + 0.5) / n_corners
    unit = np.column_stack([np.cos(angle), np.sin(angle)]) * (np.sqrt(2) if touching else 1.0)
    return slide.centers[:, None, :] + unit * size * diameter / 2


def _fill(ax: Axes, corners: Any, chosen: NDArray[np.bool_], **style: Any) -> PolyCollection:
    from matplotlib.collections import PolyCollection

    rows = np.flatnonzero(chosen)
    polygons: Any = corners[rows] if isinstance(corners, np.ndarray) else [corners[row] for row in rows]
    filled = PolyCollection(polygons, rasterized=len(chosen) > RASTERIZE_ABOVE, **style)
    ax.add_collection(filled, autolim=False)
    return filled
