"""Slides of an AnnData: its libraries, and what `uns` says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stcontrast._keys import IMAGE_FEATURES
from stcontrast._reading.columns import names_of, obs_column, obsm_array
from stcontrast._reading.elements import (
    COVERAGE,
    image_from_array,
    is_rgb_array,
    share_inside,
)
from stcontrast._reading.scale import Scale, positive_number
from stcontrast._reading.sections import Slide, check_finite, no_positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["column_of_libraries", "library_rows", "library_slide"]


def column_of_libraries(table: AnnData, library_key: str | None) -> str | None:
    """Column of `obs` that names the slide of a spot: the one that is named, else "library_id" if it is there."""
    return "library_id" if library_key is None and "library_id" in table.obs else library_key


def library_rows(table: AnnData, *, library_key: str | None) -> dict[str, NDArray[np.intp]]:
    """Rows of every slide, by name.

    Raises
    ------
    KeyError
        If the column that names the slides is absent.
    ValueError
        If there are images of several slides and nothing says which belongs to which spots.
    """
    library_key = column_of_libraries(table, library_key)
    libraries = list(table.uns.get("spatial", {}))
    if library_key is None:
        if len(libraries) > 1:
            msg = f"`uns['spatial']` holds the images of {libraries}: give `library_key`, the column of `obs` that names the slide of a spot."
            raise ValueError(msg)
        return {(libraries or ["slide"])[0]: np.arange(table.n_obs)}
    if library_key not in table.obs:
        msg = f"No column {library_key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    names = names_of(obs_column(table, library_key))
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def library_slide(table: AnnData, name: str, rows: NDArray[np.intp], image_key: str | None) -> Slide:
    """One slide, its centres in pixels of the image that scanpy kept.

    Raises
    ------
    KeyError
        If positions or the named image are absent.
    ValueError
        If the image does not lie under the spots.
    """
    if "spatial" not in table.obsm:
        if IMAGE_FEATURES in table.obsm or table.uns.get("spatial", {}).get(name, {}).get("images"):
            raise KeyError(no_positions(table))
        # counts alone: enough for the gene side of a model
        return Slide(name, rows, np.zeros((len(rows), 2)), np.nan, None, None)
    centers = _positions(table)[rows]
    check_finite(centers, name)
    library = table.uns.get("spatial", {}).get(name, {})
    factors = library.get("scalefactors", {})
    diameter = float(factors.get("spot_diameter_fullres", np.nan))
    # anything else than RGB(A) is no H&E
    images = {
        resolution: pixels
        for resolution, pixels in library.get("images", {}).items()
        if f"tissue_{resolution}_scalef" in factors and is_rgb_array(pixels)
    }
    if image_key is not None and image_key not in images:
        msg = f"No image {image_key!r} with a scale factor in `uns['spatial'][{name!r}]`; its images are {sorted(images)}."
        raise KeyError(msg)
    # HEST-1k calls its only image "downscaled_fullres"
    chosen = image_key or max(images, key=lambda image: float(factors[f"tissue_{image}_scalef"]), default=None)
    if chosen is None:
        return Slide(name, rows, centers, diameter, None, None, no_image=_why_no_image(table, name))
    factor = float(factors[f"tissue_{chosen}_scalef"])
    height, width = np.shape(images[chosen])[:2]
    inside = share_inside(centers * factor, (width, height))
    if inside < COVERAGE:
        msg = (
            f"Image {chosen!r} of {name!r} ({width} × {height} pixels) does not lie under the spots: {inside:.0%} of them "
            f"fall on it. `obsm['spatial']` must be in pixels of the full-resolution image (scale factor {factor:g})."
        )
        raise ValueError(msg)
    image = image_from_array(images[chosen], f"{name}/{chosen}")
    stated = _stated_for_library(factors, name, factor)
    return Slide(name, rows, centers * factor, diameter * factor, image, None, stated=stated)


def _positions(table: AnnData) -> NDArray[np.float64]:
    """Positions (n_spots, 2), x and y; a data frame names its columns, in any order."""
    values, names = obsm_array(table, "spatial"), getattr(table.obsm["spatial"], "columns", ())
    found = {str(column).lower(): i for i, column in enumerate(names)}
    axes = [found["x"], found["y"]] if {"x", "y"} <= set(found) else [0, 1]
    if values.ndim != 2 or values.shape[1] < 2:
        msg = f"`obsm['spatial']` must have two columns, x and y of every spot, found shape {values.shape}."
        raise ValueError(msg)
    return np.asarray(values[:, axes], dtype=np.float64)


def _why_no_image(table: AnnData, name: str) -> str:
    """Why the images of an AnnData are not the H&E of a slide."""
    libraries = table.uns.get("spatial", {})
    if name not in libraries:
        return f"`uns['spatial']` has no {name!r}; its keys are {sorted(libraries)}"
    images, factors = libraries[name].get("images", {}), libraries[name].get("scalefactors", {})
    if not images:
        return f"`uns['spatial'][{name!r}]` has no images"
    return "; ".join(
        f"{key!r} is not RGB (shape {np.shape(pixels)})"
        if not is_rgb_array(pixels)
        else f"{key!r} has no scale factor `tissue_{key}_scalef` (there are {sorted(factors)})"
        for key, pixels in images.items()
    )


def _stated_for_library(factors: Mapping[str, Any], name: str, factor: float) -> Scale | None:
    """What Space Ranger's JSON says of Visium HD, for an image that is `factor` as large as the full resolution."""
    value = factors.get("microns_per_pixel")
    if value is None:
        return None
    return Scale(
        positive_number(value, f"`microns_per_pixel` of {name!r}") / factor, "`microns_per_pixel` of Space Ranger"
    )
