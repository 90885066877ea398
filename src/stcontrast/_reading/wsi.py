"""Whole-slide files: the pixels and the scale of a WSIData. No other file knows wsidata.

A WSIData is a SpatialData whose slide lies in a file (svs, ndpi, tiff, ...). wsidata keeps its shapes in pixels of
the finest level, in the coordinate system "global".
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._reading.elements import OF_FILE, image_of_element

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading.elements import SlideImage

__all__ = [
    "add_tile_table",
    "is_wsi",
    "open_slide",
    "slide_element",
    "slide_image",
    "slide_name",
    "slide_um_per_px",
    "tiles_alone",
]

logger = logging.getLogger(__name__)

TILE_PX: Final = 1024
# a tiff that was no scan says how it is printed: 72 dots an inch would be 353 µm a pixel
COARSEST_UM_PER_PX: Final = 20.0


def is_wsi(data: object) -> bool:
    """Whether an object is a WSIData. wsidata is not imported for this."""
    module = sys.modules.get("wsidata")
    return module is not None and isinstance(data, module.WSIData)


def slide_name(sdata: SpatialData) -> str | None:
    """Name of the slide of a WSIData: that of its file, or of the image element that it was opened on."""
    return Path(sdata.reader.file).name if is_wsi(sdata) else None


def slide_element(sdata: SpatialData) -> dict[str, Any]:
    """The slide file of a WSIData as a lazy image element.

    Parameters
    ----------
    sdata
        Any SpatialData.

    Returns
    -------
    Name of the file and a multiscale image, level by level in tiles of 1024 pixels, RGB, in "global". It holds the
    reader without its open file, so that it can be sent to other processes, which open the file themselves. Nothing
    for another SpatialData, or for a WSIData that was opened on one of its image elements.

    Raises
    ------
    FileNotFoundError
        If the file is no longer there.
    """
    if not is_wsi(sdata):
        return {}
    from wsidata.reader import SpatialDataImage2DReader, to_datatree

    if isinstance(sdata.reader, SpatialDataImage2DReader):
        return {}
    if not Path(sdata.reader.file).exists():
        msg = (
            f"The slide file {str(sdata.reader.file)!r} of the WSIData is gone: it was moved, renamed or deleted. Put it "
            "back, or open it where it is now with `wsidata.open_wsi`."
        )
        raise FileNotFoundError(msg)
    tree = to_datatree(sdata.reader, chunks=(TILE_PX, TILE_PX))
    tree.attrs[OF_FILE] = True
    return {Path(sdata.reader.file).name: tree}


def slide_image(sdata: SpatialData) -> SlideImage | None:
    """The slide file of a WSIData as a pyramid of lazy arrays; `None` where :func:`slide_element` has nothing.

    Raises
    ------
    FileNotFoundError
        If the file is no longer there.
    """
    for name, element in slide_element(sdata).items():
        return image_of_element(element, name)
    return None


def slide_um_per_px(sdata: SpatialData) -> float | None:
    """µm per pixel of the finest level of a WSIData's slide, as its file says or `set_mpp` has set it.

    Parameters
    ----------
    sdata
        Any SpatialData.

    Returns
    -------
    µm per pixel; `None` for another SpatialData, and where nothing is stored or it is no scale of a microscope.
    """
    mpp = sdata.properties.mpp if is_wsi(sdata) else None
    if mpp is None or not np.isfinite(mpp) or mpp <= 0:
        return None
    if mpp > COARSEST_UM_PER_PX:
        logger.warning(
            "%s states %.4g µm per pixel, which no microscope has (%.0f dots per inch, for printing?): not used.",
            slide_name(sdata), mpp, 25400 / mpp,
        )  # fmt: skip
        return None
    return float(mpp)


def tiles_alone(wsi: SpatialData, tile_key: str) -> SpatialData:
    """A WSIData with the same slide and one set of its tiles, annotated by a table without genes; `wsi` is not changed.

    Raises
    ------
    TypeError
        If `wsi` is no WSIData.
    KeyError
        If it has no such tiles; the message lists its shapes.
    """
    if not is_wsi(wsi):
        msg = f"Expected a WSIData (`wsidata.open_wsi`), found {type(wsi).__name__}."
        raise TypeError(msg)
    if tile_key not in wsi.shapes:
        msg = (
            f"No tiles {tile_key!r} in the WSIData; its shapes are {sorted(wsi.shapes)}. "
            "Make tiles with `lazyslide.pp.tile_tissues`."
        )
        raise KeyError(msg)
    from spatialdata import SpatialData

    tiles = wsi.shapes[tile_key]
    bare = SpatialData(images=dict(wsi.images.items()), shapes={tile_key: tiles})
    alone = type(wsi).from_spatialdata(bare, wsi.reader)
    add_tile_table(alone, "table", tile_key, np.empty((len(tiles), 0), dtype=np.float32))
    return alone


def add_tile_table(wsi: SpatialData, key: str, tile_key: str, values: NDArray[np.float32]) -> None:
    """Add a table that annotates tiles the way wsidata does, its values (n_tiles, n_values) in `X`."""
    from wsidata.io import add_features

    add_features(wsi, key=key, tile_key=tile_key, features=values, uns={})


def open_slide(slide: str | PathLike[str] | SpatialData) -> SpatialData:
    """A whole-slide file as a WSIData; one that is open is handed on.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If wsidata is not installed.
    TypeError
        If it is neither a file nor a WSIData whose slide is a file.
    ValueError
        If no reader can open it.
    """
    if not isinstance(slide, str | PathLike):
        if is_wsi(slide) and slide_element(slide):
            return slide
        msg = (
            f"Expected the path of a slide file or a WSIData (`wsidata.open_wsi`), found {type(slide).__name__}. A "
            "SpatialData with images takes `stc.pp.tissue_grid`, then `stc.tl.predict_expression` and `stc.tl.classify`."
        )
        raise TypeError(msg)
    path = Path(slide)
    if not path.exists():
        msg = f"No slide file at {str(path)!r}."
        raise FileNotFoundError(msg)
    if importlib.util.find_spec("wsidata") is None:
        msg = 'Slide files are opened by wsidata, which is not installed: `pip install "stcontrast[wsi]"`.'
        raise ImportError(msg)
    from wsidata import open_wsi

    try:
        wsi: SpatialData = open_wsi(str(path), store=None)
    # every reader has errors of its own
    except Exception as error:
        msg = f"{str(path)!r} cannot be read as a slide ({type(error).__name__}: {error})."
        raise ValueError(msg) from error
    return wsi
