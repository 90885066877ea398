"""Shapes and images of a SpatialData, as arrays: the part of the boundary that reads elements."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dask.array as da
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = [
    "Placement",
    "SlideImage",
    "affine_matrix",
    "check_square_pixels",
    "image_from_array",
    "image_of_element",
    "images_over",
    "rgb_size",
    "shape_centers",
]

logger = logging.getLogger(__name__)

# an image lies under a slide if it holds the centre of nearly every spot (some lie at the border)
COVERAGE: Final = 0.95
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
    """

    name: str
    levels: tuple[da.Array, ...]
    downsampling: tuple[float, ...]


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
    sdata: SpatialData, slide: str, centers: NDArray[np.float64], *, images: Mapping[str, Any]
) -> Placement | None:
    """Find the finest RGB image that lies under the spots.

    Parameters
    ----------
    sdata
        The object that holds the shapes.
    slide
        Name of the shapes element of the slide.
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

    to_shared = get_transformation(sdata.shapes[slide], get_all=True)
    found: list[Placement] = []
    for name, element in images.items():
        height, width = rgb_size(element) or (0, 0)
        for system, of_image in get_transformation(element, get_all=True).items():
            if system not in to_shared or height == 0:
                continue
            placement = Placement(
                name, system, np.linalg.inv(affine_matrix(of_image)) @ affine_matrix(to_shared[system])
            )
            pixels = placement.to_pixels(centers)
            inside = ((pixels >= 0) & (pixels <= (width, height))).all(axis=1).mean()
            if inside >= COVERAGE:
                found.append(placement)
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
        logger.info("Slide %s: image %r is taken, finer than %s.", slide, best.name, others)
    return best


def image_of_element(element: Any, name: str) -> SlideImage:
    """An image element, single- or multiscale, as a pyramid of lazy RGB arrays."""
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    arrays = list(get_pyramid_levels(element)) if isinstance(element, DataTree) else [element]
    factors = [_downsampling(arrays[0], array) for array in arrays]
    usable = [
        (array, factor)
        for array, factor in zip(arrays, factors, strict=True)
        if array is arrays[0] or factor is not None
    ]
    levels = tuple(da.asarray(array.transpose("c", "y", "x").data)[:3] for array, _ in usable)
    return SlideImage(name, levels, tuple(factor or 1.0 for _, factor in usable))


def image_from_array(pixels: NDArray[Any], name: str) -> SlideImage:
    """An image held in memory (height, width, 3 or more channels), as scanpy keeps it."""
    channels_first = np.moveaxis(np.asarray(pixels)[..., :3], -1, 0)
    return SlideImage(name, (da.from_array(channels_first, chunks=(3, 1024, 1024)),), (1.0,))


def rgb_size(element: Any) -> tuple[int, int] | None:
    """Height and width of an image element in pixels of its finest level; `None` if it is not RGB."""
    from spatialdata import get_pyramid_levels
    from xarray import DataTree

    array = next(iter(get_pyramid_levels(element))) if isinstance(element, DataTree) else element
    # fluorescence has one channel per marker; an H&E image has 3 (RGB) or 4 (RGBA)
    if array.sizes["c"] not in (3, 4):
        return None
    return array.sizes["y"], array.sizes["x"]


def _downsampling(finest: Any, level: Any) -> float | None:
    """Pixels of the finest level for one pixel of another; `None` where the axes differ."""
    ratios = [finest.sizes[axis] / level.sizes[axis] for axis in ("x", "y")]
    # A pyramid is made by whole factors; what is left over at the border (less than a pixel) is trimmed or padded.
    whole = round(ratios[0])
    if all(abs(finest.sizes[axis] - whole * level.sizes[axis]) < whole for axis in ("x", "y")):
        return float(whole)
    return ratios[0] if abs(ratios[0] / ratios[1] - 1) < ANISOTROPY else None


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
