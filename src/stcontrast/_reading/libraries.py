"""Slides of an AnnData, as scanpy keeps them: positions in `obsm`, images by library in `uns`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stcontrast._reading.elements import COVERAGE, image_from_array
from stcontrast._reading.slide import Slide, check_finite

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["library_rows", "library_slide"]


def library_rows(table: AnnData, *, library_key: str | None) -> dict[str, NDArray[np.intp]]:
    """Rows of every slide, by name.

    Raises
    ------
    KeyError
        If the column that names the slides is absent.
    ValueError
        If there are images of several slides and nothing says which is whose.
    """
    if library_key is None and "library_id" in table.obs:
        library_key = "library_id"
    libraries = list(table.uns.get("spatial", {}))
    if library_key is None:
        if len(libraries) > 1:
            msg = f"`uns['spatial']` holds the images of {libraries}: give `library_key`, the column of `obs` that names the slide of a spot."
            raise ValueError(msg)
        return {(libraries or ["slide"])[0]: np.arange(table.n_obs)}
    if library_key not in table.obs:
        msg = f"No column {library_key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    names = table.obs[library_key].astype(str).to_numpy()
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def library_slide(table: AnnData, name: str, rows: NDArray[np.intp], image_key: str | None) -> Slide:
    """One slide, its centres in pixels of the image that scanpy kept.

    Raises
    ------
    KeyError
        If positions or the named image are absent.
    ValueError
        If the image lies elsewhere than the spots.
    """
    if "spatial" not in table.obsm:
        msg = f"No `obsm['spatial']` in the AnnData object; its obsm holds {sorted(table.obsm)}."
        raise KeyError(msg)
    centers = np.asarray(table.obsm["spatial"], dtype=np.float64)[rows, :2]
    check_finite(centers, name)
    library = table.uns.get("spatial", {}).get(name, {})
    factors = library.get("scalefactors", {})
    diameter = float(factors.get("spot_diameter_fullres", np.nan))
    # anything else than RGB(A) is no H&E
    images = {
        resolution: pixels
        for resolution, pixels in library.get("images", {}).items()
        if np.ndim(pixels) == 3 and np.shape(pixels)[-1] in (3, 4) and f"tissue_{resolution}_scalef" in factors
    }
    if image_key is not None and image_key not in images:
        msg = f"No image {image_key!r} with a scale factor in `uns['spatial'][{name!r}]`; its images are {sorted(images)}."
        raise KeyError(msg)
    chosen = image_key or next((resolution for resolution in ("hires", "lowres") if resolution in images), None)
    if chosen is None:
        return Slide(name, rows, centers, diameter, None, None)
    factor = float(factors[f"tissue_{chosen}_scalef"])
    height, width = np.shape(images[chosen])[:2]
    inside = ((centers * factor >= 0) & (centers * factor <= (width, height))).all(axis=1).mean()
    if inside < COVERAGE:
        msg = (
            f"Image {chosen!r} of {name!r} ({width} × {height} pixels) lies elsewhere than the spots: {inside:.0%} of them "
            f"fall on it. `obsm['spatial']` must be in pixels of the full-resolution image (scale factor {factor:g})."
        )
        raise ValueError(msg)
    image = image_from_array(images[chosen], f"{name}/{chosen}")
    return Slide(name, rows, centers * factor, diameter * factor, image, None)
