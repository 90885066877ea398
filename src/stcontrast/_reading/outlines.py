"""Outlines of spots, to draw and to export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._reading.columns import obs_column
from stcontrast._reading.elements import (
    shape_centers,
)
from stcontrast._reading.spatialdata_slides import positions_of, shapes_of_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._reading.sections import Sections, Slide

__all__ = ["circle", "slide_outlines"]

# of a circle that is drawn
CORNERS: Final = 24


def slide_outlines(sections: Sections, slide: Slide) -> list[NDArray[np.float64]] | None:
    """Outline of every spot of a slide, corners (n, 2) in the units of its centres.

    Parameters
    ----------
    sections, slide
        The object, and one of its slides.

    Returns
    -------
    The outlines of polygons, or of circles of several sizes, in the order of ``slide.rows``; of several parts the
    largest. `None` where `diameter` says all: for circles of one size, and for an AnnData.
    """
    if not sections.is_spatialdata:
        return None
    shapes_name, instance_key = shapes_of_region(
        sections.data, sections.table, slide.name, slide.rows, str(sections.instance_key)
    )
    shapes = sections.data.shapes[shapes_name]
    circles = "radius" in shapes and (shapes.geom_type == "Point").all()
    if circles and slide.one_size:
        return None
    instances = obs_column(sections.table, instance_key).to_numpy()[slide.rows]
    positions = positions_of(instances, shapes.index, slide.name, instance_key)
    centers, diameters = (values[positions] for values in shape_centers(shapes))
    if circles:
        own = [circle(center, diameter) for center, diameter in zip(centers, diameters, strict=True)]
    else:
        own = [_outer_ring(geometry) for geometry in shapes.geometry.iloc[positions]]
    matrix, shift = _affine_between(centers, slide.centers, scale=slide.diameter / float(np.median(diameters)))
    return [corners @ matrix + shift for corners in own]


def circle(center: NDArray[np.float64], diameter: float) -> NDArray[np.float64]:
    """Corners (n, 2) of a polygon that stands for a circle."""
    angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
    return center + np.column_stack([np.cos(angle), np.sin(angle)]) * diameter / 2


def _outer_ring(geometry: Any) -> NDArray[np.float64]:
    """Corners of a polygon's outline, of the largest part where there are several."""
    largest = max(getattr(geometry, "geoms", [geometry]), key=lambda part: part.area)
    return np.asarray(largest.exterior.coords, dtype=np.float64)[:-1, :2]


def _affine_between(
    before: NDArray[np.float64], after: NDArray[np.float64], *, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The affine map that takes points to points: ``before @ matrix + shift``; spots on one line fix only a scale."""
    middle = before.mean(axis=0)
    solution, _, rank, _ = np.linalg.lstsq(before - middle, after - after.mean(axis=0), rcond=1e-6)
    matrix = solution if rank == 2 else scale * np.eye(2)
    return matrix, after.mean(axis=0) - middle @ matrix
