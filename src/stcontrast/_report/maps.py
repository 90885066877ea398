"""Maps of observed and predicted expression, as numbers that the browser draws: small, and any gene of any slide."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from stcontrast._reading import spot_distance
from stcontrast.metrics import gene_correlation
from stcontrast.pp._crops import shrunk_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Slide

__all__ = ["CLASS_COLORS", "MAX_CLASSES", "SlideNumbers", "slide_maps"]

# The first five are of Okabe and Ito 2008. Each next one is the colour that is farthest (CIE Lab) from those before it
# and from faded H&E, for normal vision and the three kinds of colour blindness (Machado et al. 2009). The first 14 have
# no purple, in which haematoxylin lies.
CLASS_COLORS: Final = (
    "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#f0e442", "#691e00", "#004bb4", "#00ff87", "#e1004b", "#a5d2a5",
    "#0f78ff", "#4b693c", "#874b00", "#e1b45a", "#4b2d5a", "#7800ff", "#4b3c87", "#7869c3", "#b40fe1", "#9696ff",
    "#965a78", "#2d00c3", "#78b469", "#c3783c",
)  # fmt: skip
# bytes before base64, of all slides together
NUMBERS_BYTES: Final = 3_000_000
PICTURE_BYTES: Final = 2_500_000
MAX_GENES: Final = 48
# as many as a byte has numbers, without that of no class
MAX_CLASSES: Final = 255
MAX_SPOTS: Final = 20_000
PICTURE_PX: Final = 640
QUALITIES: Final = (80, 60, 40)
NO_VALUE: Final = 255
STEPS: Final = 65_535
COLORMAP: Final = "YlOrBr"


class SlideNumbers(NamedTuple):
    """What is drawn of a slide.

    Attributes
    ----------
    name, note
        Its name, and what the model knows of it.
    centers
        Centres of the spots (n_spots, 2).
    predicted, observed
        Expression (n_spots, n_genes), NaN where there is none.
    outside
        Whether a spot is out of distribution; `None` if nobody says.
    slide
        The slide with its H&E; `None` if it is not given.
    predicted_class, observed_class
        Number of the class of every spot (n_spots,), −1 where there is none; `None` where no spot has one.
    """

    name: str
    note: str
    centers: NDArray[np.float64]
    predicted: NDArray[np.float32]
    observed: NDArray[np.float32]
    outside: NDArray[np.bool_] | None = None
    slide: Slide | None = None
    predicted_class: NDArray[np.int64] | None = None
    observed_class: NDArray[np.int64] | None = None


def slide_maps(
    slides: Sequence[SlideNumbers], genes: Sequence[str], classes: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What the browser draws.

    Parameters
    ----------
    slides
        The slides.
    genes
        Genes in the order of their columns, the most important first: as many as there is space for are kept.
    classes
        Names of the classes, in the order of their numbers; at most `MAX_CLASSES`.

    Returns
    -------
    Plain values; `None` without slides or genes.
    """
    n_spots = sum(min(len(slide.centers), MAX_SPOTS) for slide in slides)
    kept = min(len(genes), MAX_GENES, max(NUMBERS_BYTES // max(2 * n_spots, 1), 1))
    if not kept or not n_spots:
        return None
    every = np.concatenate([np.concatenate([s.predicted[:, :kept], s.observed[:, :kept]]) for s in slides])
    low, high = np.zeros(kept), np.ones(kept)
    for column in range(kept):
        known = every[np.isfinite(every[:, column]), column]
        if len(known):
            low[column], high[column] = np.quantile(known, (0.01, 0.99))
    high = np.where(high - low > 1e-6, high, low + 1.0)
    room = PICTURE_BYTES // len(slides)
    colors = [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(len(classes))]
    return {
        "classes": [{"name": name, "color": color} for name, color in zip(classes, colors, strict=True)] or None,
        "genes": list(genes[:kept]),
        "left_out": len(genes) - kept,
        "low": [float(value) for value in low],
        "high": [float(value) for value in high],
        "colors": _colors(),
        "slides": [_of_slide(slide, kept, low, high, room=room) for slide in slides],
    }


def _of_slide(
    numbers: SlideNumbers, n_genes: int, low: NDArray[np.float64], high: NDArray[np.float64], *, room: int
) -> dict[str, Any]:
    n = len(numbers.centers)
    rows = np.unique(np.linspace(0, n - 1, min(n, MAX_SPOTS)).astype(np.intp))
    pitch = spot_distance(numbers.centers)
    diameter = numbers.slide.diameter if numbers.slide is not None else np.nan
    if not np.isfinite(diameter) or diameter <= 0:
        diameter = 0.55 * pitch if np.isfinite(pitch) else 1.0
    # the thinned spots of a large slide leave no gaps
    diameter *= float(np.sqrt(n / len(rows)))
    corner, opposite = numbers.centers.min(axis=0) - diameter, numbers.centers.max(axis=0) + diameter
    width, height = opposite - corner
    predicted, observed = (values[:, :n_genes] for values in (numbers.predicted, numbers.observed))
    known = np.isfinite(observed).all(axis=1) & np.isfinite(predicted).all(axis=1)
    r = gene_correlation(predicted[known], observed[known]) if known.sum() > 2 else np.full(n_genes, np.nan)
    picture = None if numbers.slide is None or numbers.slide.image is None else numbers.slide
    outside = numbers.outside
    return {
        "name": numbers.name,
        "note": numbers.note,
        "n_spots": n,
        "n_drawn": len(rows),
        "aspect": float(height / width),
        "radius": float(diameter / 2 / width),
        "x": _packed((numbers.centers[rows, 0] - corner[0]) / width * STEPS, np.uint16),
        "y": _packed((numbers.centers[rows, 1] - corner[1]) / height * STEPS, np.uint16),
        "predicted": _packed(_levels(predicted[rows], low, high), np.uint8),
        "observed": _packed(_levels(observed[rows], low, high), np.uint8) if known.any() else None,
        "predicted_class": _codes(numbers.predicted_class, rows),
        "observed_class": _codes(numbers.observed_class, rows),
        "outside": None if outside is None else _packed(outside[rows], np.uint8),
        "r": [float(value) if np.isfinite(value) else None for value in r],
        "picture": None if picture is None else _picture(picture, corner, opposite, room=room),
    }


def _codes(of_spot: NDArray[np.int64] | None, rows: NDArray[np.intp]) -> str | None:
    """Numbers of classes; 255 has none."""
    return None if of_spot is None else _packed(np.where(of_spot < 0, NO_VALUE, of_spot)[rows], np.uint8)


def _levels(values: NDArray[np.float32], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Genes × spots, 0 to 254; 255 has no value."""
    scaled = np.clip((values - low) / (high - low), 0, 1) * (NO_VALUE - 1)
    return np.where(np.isfinite(scaled), np.rint(scaled), NO_VALUE).T


def _packed(values: NDArray[Any], kind: type[np.unsignedinteger]) -> str:
    # little-endian, as every browser has it
    whole = np.rint(np.asarray(values, dtype=np.float64)).astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(whole.tobytes()).decode()


def _picture(slide: Slide, low: NDArray[np.float64], high: NDArray[np.float64], *, room: int) -> dict[str, Any] | None:
    """The H&E as JPEG, and where it lies in the map: left, top, width, height as shares of the map's sides."""
    from PIL import Image

    assert slide.image is not None
    pixels, (left, right, bottom, top) = shrunk_image(slide.image, low, high, max_px=PICTURE_PX)
    if 0 in pixels.shape:
        return None
    image = Image.fromarray(pixels)
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= room:
            break
    else:
        return None
    width, height = high - low
    place = [(left - low[0]) / width, (top - low[1]) / height, (right - left) / width, (bottom - top) / height]
    data = base64.b64encode(file.getvalue()).decode()
    return {"source": f"data:image/jpeg;base64,{data}", "place": [float(value) for value in place]}


def _colors() -> list[str]:
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in mpl.colormaps[COLORMAP](np.linspace(0, 1, NO_VALUE))]
