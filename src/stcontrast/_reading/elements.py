"""Shapes and images of a SpatialData, as arrays: the part of the boundary that reads elements."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dask.array as da
import numpy as np

from stcontrast._reading.pixels import as_bytes, rgb_channels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray

__all__ = [
    "OF_FILE",
    "Placement",
    "SlideImage",
    "affine_matrix",
    "check_square_pixels",
    "image_from_array",
    "image_of_element",
    "images_over",
    "is_rgb_array",
    "rgb_size",
    "shape_centers",
    "share_inside",
    "why_no_image",
]

logger = logging.getLogger(__name__)

# an image lies under a slide if it holds the centre of nearly every spot (some lie at the border)
COVERAGE: Final = 0.95
# attribute of an element whose levels are those of a file of a scanner
OF_FILE: Final = "of_file"
# more are not listed
MANY_CHANNELS: Final = 60
# pixels of an H&E scan are square; a transformation that stretches one axis is a mistake
ANISOTROPY: Final = 0.02


@dataclass(frozen=True, slots=True)
class SlideImage:
    """An RGB image as a pyramid of lazy arrays.

    Attributes
    ----------
    name
        Name of the image.
    levels
        Arrays (3, height, width), the finest first.
    downsampling
        Pixels of the finest level for one pixel of each level.
    origins
        Where the first pixel of each level begins, x and y in pixels of the finest; at (0, 0) where it is not given.
    """

    name: str
    levels: tuple[da.Array, ...]
    downsampling: tuple[float, ...]
    origins: tuple[tuple[float, float], ...] = ()

    def origin(self, level: int) -> tuple[float, float]:
        """Where the first pixel of a level begins, x and y in pixels of the finest."""
        return self.origins[level] if self.origins else (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Placement:
    """How the intrinsic coordinates of a shapes element map onto the pixels of an image."""

    name: str
    coordinate_system: str
    matrix: NDArray[np.float64]

    @property
    def pixels_per_unit(self) -> float:
        """Pixels of the image for one unit of the shapes."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    def to_pixels(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map coordinates (n, 2) of the shapes to pixels (x, y) of the image."""
        return xy @ self.matrix[:2, :2].T + self.matrix[:2, 2]


def shape_centers(shapes: GeoDataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (n, 2) and diameters (n,) of circles, or centroids and sides of squares and polygons."""
    centroid = shapes.geometry.centroid
    centers = np.column_stack([centroid.x, centroid.y]).astype(np.float64)
    # polygons may carry a column of that name, too
    if "radius" in shapes and (shapes.geom_type == "Point").all():
        return centers, 2.0 * shapes["radius"].to_numpy(dtype=np.float64)
    return centers, np.sqrt(shapes.geometry.area.to_numpy(dtype=np.float64))


def images_over(
    shapes: GeoDataFrame, slide: str, centers: NDArray[np.float64], *, images: Mapping[str, Any]
) -> Placement | None:
    """Find the finest RGB image that lies under the spots.

    Parameters
    ----------
    shapes
        The shapes element of the slide.
    slide
        Name of the slide.
    centers
        Centres of its spots, intrinsic coordinates, shape (n_spots, 2).
    images
        Image elements to look at, by name.

    Returns
    -------
    Where the image lies, or `None` if there is none.

    Raises
    ------
    ValueError
        If several images lie there equally well, one lies at two places, or its pixels are stretched.
    """
    from spatialdata.transformations import get_transformation

    found = [
        placement
        for name, element in images.items()
        if (of_image := [one for one, inside in _placements(element, name, shapes, centers) if inside >= COVERAGE])
        and rgb_size(element) is not None
        for placement in of_image
    ]
    if not found:
        return None
    best = _finest(found, slide)
    for placement in found:
        if placement.name == best.name and np.abs(placement.to_pixels(centers) - best.to_pixels(centers)).max() > 1.0:
            msg = (
                f"Image {best.name!r} lies at different places under the spots in coordinate systems "
                f"{best.coordinate_system!r} and {placement.coordinate_system!r}. Remove the wrong transformation "
                "(`spatialdata.transformations.remove_transformation`)."
            )
            raise ValueError(msg)
    to_image = get_transformation(images[best.name], to_coordinate_system=best.coordinate_system)
    check_square_pixels(affine_matrix(to_image), best.name, best.coordinate_system)
    return best


def why_no_image(shapes: GeoDataFrame, centers: NDArray[np.float64], *, images: Mapping[str, Any]) -> str:
    """For every image, why it is not the H&E under the spots: its channels, or how many of the spots lie on it."""
    reasons = []
    for name, element in images.items():
        shares = [inside for _, inside in _placements(element, name, shapes, centers)]
        if rgb_size(element) is None:
            reasons.append(f"{name!r} is not RGB ({_told_channels(_finest_level(element))})")
        elif not shares:
            reasons.append(f"{name!r} shares no coordinate system with the spots")
        else:
            reasons.append(f"{max(shares):.0%} of the spots lie on {name!r}")
    return "; ".join(reasons)


def _placements(
    element: Any, name: str, shapes: GeoDataFrame, centers: NDArray[np.float64]
) -> Iterator[tuple[Placement, float]]:
    """How shapes lie on an image in every coordinate system that they share, and the share of the centres on it."""
    from spatialdata.transformations import get_transformation

    to_shared = get_transformation(shapes, get_all=True)
    array = _finest_level(element)
    for system, of_image in get_transformation(element, get_all=True).items():
        if system in to_shared:
            matrix = np.linalg.inv(affine_matrix(of_image)) @ affine_matrix(to_shared[system])
            placement = Placement(name, system, matrix)
            yield placement, share_inside(placement.to_pixels(centers), (array.sizes["x"], array.sizes["y"]))


def share_inside(pixels: NDArray[np.float64], size: tuple[int, int]) -> float:
    """Share of points (n, 2), x and y, that lie on an image of some width and height."""
    return float(((pixels >= 0) & (pixels <= size)).all(axis=1).mean())


def _finest(found: list[Placement], slide: str) -> Placement:
    finest = max(placement.pixels_per_unit for placement in found)
    equal = {placement.name: placement for placement in found if placement.pixels_per_unit > 0.99 * finest}
    if len(equal) > 1:
        # slides that all lie at the origin of one coordinate system: only the name distinguishes them
        # ("A1" is in "A1_he" and not in "A10_he")
        whole = re.compile(rf"(?<![^\W_]){re.escape(slide)}(?![^\W_])")
        named = [placement for name, placement in equal.items() if whole.search(name)]
        if len(named) != 1:
            msg = (
                f"Images {sorted(equal)} all lie under the spots of {slide!r} at the same resolution. "
                "Say which belongs to which slide: `image_key={slide: image}`."
            )
            raise ValueError(msg)
        return named[0]
    best = next(iter(equal.values()))
    others = sorted({placement.name for placement in found} - {best.name})
    if others:
        logger.warning(
            "Slide %s: image %r is used, because it is finer than %s, which lie there too. To use another image, give `image_key`.", slide,
            best.name, others,
        )  # fmt: skip
    return best


def image_of_element(element: Any, name: str) -> SlideImage:
    """An image element, single- or multiscale, as a pyramid of lazy RGB arrays.

    Parameters
    ----------
    element, name
        The element and its name.

    Notes
    -----
    The levels of a scanner's file (:data:`OF_FILE` in the attributes) begin where the finest begins. SpatialData halves
    an odd number of rows or columns without the first one: its levels begin later, by up to a pixel of their own.
    """
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    arrays = list(get_pyramid_levels(element)) if isinstance(element, DataTree) else [element]
    factors = [_downsampling(arrays[0], array) for array in arrays]
    usable = [
        (array, factor)
        for array, factor in zip(arrays, factors, strict=True)
        if array is arrays[0] or factor is not None
    ]
    lazy = [da.asarray(array.transpose("c", "y", "x").data) for array, _ in usable]
    channels = list(rgb_channels(_channel_names(arrays[0]), lazy[-1]) or (0, 1, 2))
    colors = [level[:3] if channels == [0, 1, 2] else level[channels] for level in lazy]
    downsampling = tuple(factor or 1.0 for _, factor in usable)
    origins = [
        (0.0, 0.0)
        if element.attrs.get(OF_FILE)
        else (_left_out(arrays[0], array, factor, "x"), _left_out(arrays[0], array, factor, "y"))
        for (array, _), factor in zip(usable, downsampling, strict=True)
    ]
    return SlideImage(name, as_bytes(colors, name), downsampling, tuple(origins))


def image_from_array(pixels: NDArray[Any], name: str) -> SlideImage:
    """An image held in memory (height, width, 3 or more channels), as scanpy keeps it."""
    channels_first = np.moveaxis(np.asarray(pixels)[..., :3], -1, 0)
    return SlideImage(name, as_bytes([da.from_array(channels_first, chunks=(3, 1024, 1024))], name), (1.0,))


def is_rgb_array(pixels: Any) -> bool:
    """Whether an image held in memory has the shape and the channels of RGB."""
    if np.ndim(pixels) != 3 or np.shape(pixels)[-1] not in (3, 4):
        return False
    return (
        rgb_channels(range(np.shape(pixels)[-1]), da.from_array(np.moveaxis(np.asarray(pixels), -1, 0), name=False))
        is not None
    )


def rgb_size(element: Any) -> tuple[int, int] | None:
    """Height and width of an image element in pixels of its finest level; `None` if it is not RGB."""
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    array, *coarse = get_pyramid_levels(element) if isinstance(element, DataTree) else [element]
    coarsest = da.asarray((coarse[-1] if coarse else array).transpose("c", "y", "x").data)
    if rgb_channels(_channel_names(array), coarsest) is None:
        return None
    return array.sizes["y"], array.sizes["x"]


def _finest_level(element: Any) -> Any:
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    return next(iter(get_pyramid_levels(element))) if isinstance(element, DataTree) else element


def _channel_names(array: Any) -> list[Any]:
    return array.coords["c"].values.tolist() if "c" in array.coords else list(range(array.sizes["c"]))


def _told_channels(array: Any) -> str:
    names = _channel_names(array)
    if len(names) <= MANY_CHANNELS:
        return f"channels {names}"
    colors_last = 3 <= array.sizes["x"] <= 4
    return f"{len(names)} channels" + (
        ": its axes are y, x, c, so parse it with `dims=('y', 'x', 'c')`" if colors_last else ""
    )


def _downsampling(finest: Any, level: Any) -> float | None:
    """Pixels of the finest level for one pixel of another; `None` where the axes differ."""
    sizes = [(finest.sizes[axis], level.sizes[axis]) for axis in ("x", "y")]
    ratios = [size / of_level for size, of_level in sizes]
    # A pyramid is made by whole factors; what is left over (less than a pixel) is trimmed, or padded.
    trimmed, padded = int(ratios[0]), int(np.ceil(ratios[0]))
    if all(0 <= size - trimmed * of_level < trimmed for size, of_level in sizes):
        return float(trimmed)
    if all(0 <= padded * of_level - size < padded for size, of_level in sizes):
        return float(padded)
    return ratios[0] if abs(ratios[0] / ratios[1] - 1) < ANISOTROPY else None


def _left_out(finest: Any, level: Any, factor: float, axis: str) -> float:
    """Pixels of the finest level, before the first, that a level made by a whole factor has left out."""
    rest = finest.sizes[axis] - factor * level.sizes[axis]
    return float(rest) if 0 < rest < factor and factor == round(factor) else 0.0


def affine_matrix(transformation: Any) -> NDArray[np.float64]:
    """A transformation of x and y as a matrix (3, 3)."""
    return np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)


def check_square_pixels(matrix: NDArray[np.float64], name: str, system: str) -> None:
    """Raise where the transformation of an image to a coordinate system stretches one axis."""
    lengths = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if lengths.min() <= 0 or lengths.max() / lengths.min() > 1 + ANISOTROPY:
        msg = (
            f"The transformation of image {name!r} to {system!r} stretches its pixels "
            f"({lengths.max():.4g} against {lengths.min():.4g} units a pixel): a crop in µm would be distorted. "
            "Resample the image with `spatialdata.rasterize` first."
        )
        raise ValueError(msg)
