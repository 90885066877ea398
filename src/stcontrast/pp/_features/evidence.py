"""What image features depend on: written down and compared before they are used again; and whether it looks like H&E."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._files import content_hash
from stcontrast.pp._crops import Tiles
from stcontrast.pp._encoders import identity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from stcontrast._reading import Slide, SlideImage

__all__ = [
    "at_recorded_scale",
    "changed_since",
    "evidence_of",
    "is_as_written",
    "print_of_image",
    "print_of_slide",
    "same_scale",
    "warn_of_looks",
    "window_places",
]

logger = logging.getLogger(__name__)

# windows of the image that are looked at
N_WINDOWS: Final = 8
N_ALONG_SIDE: Final = 3
WINDOW_PX: Final = 32
# what a record has for every slide
OF_SLIDE: Final = ("um_per_px", "fingerprint", "windows", "spots")
# relative; a scale that the user corrects differs by more
SAME_SCALE: Final = 1e-3
# darkest of the three colours under the spots, median: at least 120 on 20 real slides, near 0 in fluorescence
DARK: Final = 50
# the darkest twentieth under the spots, where an image resolves nuclei (µm per pixel): brown, as nuclei are with red and blue
# swapped, is red above blue and blue not above green. Eosin alone is pink: blue above green. Five real slides: red less blue is
# -64 to -45, and with the two swapped blue less green is -11 to 2. And green above red and blue in the darker half, where H&E has
# least of it.
NUCLEI_UM: Final = 1.0
BROWN: Final = (25, 10)
MOST_GREEN: Final = 5
# largest level that is looked at for tissue, and pixels along the side of what is left of it
MOST_PX: Final = 2**24
SIDE_PX: Final = 1000
# glass is bright and nearly grey; tissue has a colour against it, of which this is the least; corners may be masked black
GLASS: Final = (180, 40)
MIN_COLOR: Final = 0.05
BLACK: Final = 30
# spots that a share means something of
FEWEST_SPOTS: Final = 50
# share of the spots on tissue: too few; and, with axes swapped or mirrored, how many and how many more (pale tissue passes
# for glass: with the right axes, up to 0.16 more lie on the rest of it on the synthetic slides)
FEW_ON_TISSUE: Final = 0.1
MOST_ON_TISSUE: Final = 0.9
MORE_ON_TISSUE: Final = 0.2


def evidence_of(slide: Slide, made_with: Mapping[str, Any], features: NDArray[np.float32]) -> dict[str, Any]:
    """What a record says of the features (n_spots, n_features) of one slide.

    Returns
    -------
    µm per pixel; a hash of encoder, fields, stain and image; the places (n, 2) at which it looked at the pixels; and two
    numbers a spot (n_spots, 2): of its features, and of its features and its place.
    """
    windows = window_places(slide.centers)
    values = (float(slide.um_per_px or np.nan), print_of_slide(slide, made_with, windows), windows)
    return dict(zip(OF_SLIDE, (*values, _prints_of_spots(features, slide.centers)), strict=True))


def changed_since(
    slide: Slide, made_with: Mapping[str, Any], features: NDArray[np.floating], record: Mapping[str, Any]
) -> str | None:
    """Why features of a slide are no longer what encoding it would give; `None` where they are, or nobody can tell.

    Parameters
    ----------
    slide
        The slide now. Without an image nothing can be compared.
    made_with
        Encoder, fields and perhaps stain, as a record has them.
    features
        The features of its spots (n_spots, n_features).
    record
        What was written down with them. A slide may have another name now, some of its spots, or another order of them.
    """
    if slide.image is None:
        return None
    reason = "it is not known what they were made of"
    for before in _entries(slide.name, record):
        then = replace(slide, um_per_px=before["um_per_px"])
        # a scale that is derived from the spots has errors of rounding
        if slide.um_per_px is None or not same_scale(before["um_per_px"], slide.um_per_px):
            now = "unknown" if slide.um_per_px is None else f"{slide.um_per_px:.4g}"
            reason = f"they were made at {before['um_per_px']:.4g} µm per pixel, now it is {now}"
        elif print_of_slide(then, made_with, before["windows"]) != before["fingerprint"]:
            reason = "its image has changed"
        else:
            known = np.isin(_prints_of_spots(features, slide.centers)[:, 1], before["spots"][:, 1])
            if known.all():
                return None
            reason = f"{np.count_nonzero(~known)} of its {len(known)} spots lie elsewhere in the image"
    return reason


def at_recorded_scale(slide: Slide, made_with: Mapping[str, Any], record: Mapping[str, Any]) -> Slide:
    """The slide at the µm per pixel that its features were made at, if its image is the same and nobody gave a scale."""
    if slide.image is None or not (slide.scale_derived or slide.um_per_px is None):
        return slide
    for before in _entries(slide.name, record):
        then = replace(slide, um_per_px=before["um_per_px"], scale_derived=False)
        if print_of_slide(then, made_with, before["windows"]) == before["fingerprint"]:
            return then
    return slide


def same_scale(one: float | None, other: float) -> bool:
    """Whether two µm per pixel are the same but for rounding."""
    return one is not None and bool(np.isclose(one, other, rtol=SAME_SCALE))


def is_as_written(features: NDArray[Any], record: Mapping[str, Any]) -> bool:
    """Whether features (n_spots, n_features) are those that were written, all or some of them; `True` if nobody can tell."""
    written = list(record.get("spots", {}).values())
    if not written:
        return True
    known = np.concatenate([np.asarray(of_slide, dtype=np.int64)[:, 0] for of_slide in written])
    return bool(np.isin(_prints_of_spots(features)[:, 0], known).all())


def _prints_of_spots(features: NDArray[Any], centers: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Hashes (n_spots, 2): of the features of every spot, and of them and its place (to a thousandth of a pixel)."""
    places = np.zeros((len(features), 0)) if centers is None else np.round(centers, 3) + 0.0
    digests = bytearray()
    for row, place in zip(np.ascontiguousarray(features, dtype=np.float32), places, strict=True):
        own = hashlib.blake2b(row.tobytes(), digest_size=8)
        digests += own.digest()
        own.update(place.tobytes())
        digests += own.digest()
    return np.frombuffer(bytes(digests), dtype="<i8").astype(np.int64).reshape(-1, 2)


def print_of_slide(slide: Slide, made_with: Mapping[str, Any], windows: NDArray[np.float64]) -> str:
    """Hash of what the features of all spots of a slide depend on.

    That is: the encoder (weights by content, not by path), fields, stain normalisation, µm per pixel, size and levels of
    the image, and its pixels around these places (n, 2).
    """
    if slide.image is None:
        return ""
    image = slide.image
    facts = {
        "encoder": identity(made_with["encoder"]),
        "field_um": [float(value) for value in made_with["field_um"]],
        "stain": made_with.get("stain"),
        "um_per_px": slide.um_per_px,
        "levels": [[int(size) for size in level.shape] for level in image.levels],
        "downsampling": list(image.downsampling),
        "origins": [list(image.origin(level)) for level in range(len(image.levels))],
    }
    return content_hash([facts, *pixels_around(image, windows)])[:32]


def print_of_image(image: SlideImage) -> str:
    """Hash of an image alone, whatever spots lie on it: of its size, and of its pixels at places all over it."""
    height, width = image.levels[0].shape[1:]
    along = (np.arange(N_ALONG_SIDE) + 0.5) / N_ALONG_SIDE
    places = np.array(list(product(along * width, along * height)))
    return content_hash([[int(height), int(width)], *pixels_around(image, places)])[:16]


def window_places(centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (n, 2) at which the pixels of a slide are looked at: around some of its spots."""
    return centers[np.unique(np.linspace(0, len(centers) - 1, N_WINDOWS).astype(int))].round(3)


def _entries(name: str, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a record says of a slide of this name, or of every slide where none has it: it may have been renamed."""
    known = [slide for slide in record.get("spots", {}) if slide in record["fingerprint"]]
    for slide in [name] if name in known else known:
        entry = {key: record[key][slide] for key in OF_SLIDE}
        yield entry | {
            "windows": np.asarray(entry["windows"], dtype=np.float64).reshape(-1, 2),
            "spots": np.asarray(entry["spots"], dtype=np.int64).reshape(-1, 2),
        }


def pixels_around(image: SlideImage, places: NDArray[np.float64]) -> Iterator[NDArray[Any]]:
    """Pixels (3, height, width) of the finest level around places (n, 2)."""
    finest = Tiles(image.levels[0], levels=image.levels)
    for x, y in places:
        along_x, along_y = (_around(middle, side) for middle, side in ((x, finest.shape[1]), (y, finest.shape[0])))
        yield finest.window(along_y, along_x)


def _around(middle: float, side: int) -> slice:
    start = int(np.clip(np.rint(middle) - WINDOW_PX // 2, 0, max(side - WINDOW_PX, 0)))
    return slice(start, min(start + WINDOW_PX, side))


def warn_of_looks(slide: Slide) -> None:
    """Say at WARNING where an image has not the colours of H&E, and where spots miss its tissue, as with swapped axes."""
    if slide.image is None or len(slide.centers) == 0:
        return
    windows = pixels_around(slide.image, window_places(slide.centers))
    pixels = np.concatenate([window.reshape(len(window), -1) for window in windows], axis=1).astype(np.float64)
    darkest = float(np.median(pixels.min(axis=0)))
    if darkest < DARK:
        logger.warning(
            "Slide %r: image %r is dark under the spots (%.0f of 255 in the darkest colour). H&E is bright, because light "
            "passes through it. Is the image fluorescence, inverted or CMYK? Then features do not mean what they do on H&E. "
            "Give the H&E with `image_key`.", slide.name, slide.image.name, darkest,
        )  # fmt: skip
        return
    if odd := _odd_color(pixels, slide.um_per_px):
        logger.warning(
            "Slide %r: under the spots, image %r %s. Are its colours in another order (OpenCV reads blue, green, red), is it inverted, or "
            "another stain? Features of an encoder mean what they do on H&E only if the order is red, green, blue.",
            slide.name, slide.image.name, odd,
        )  # fmt: skip
    if len(slide.centers) < FEWEST_SPOTS or (found := _tissue(slide.image)) is None:
        return
    tissue, size = found
    share = {changed: _share_on(tissue, xy / size) for changed, xy in _arranged(slide.centers, size)}
    given = share.pop("")
    better = max(share, key=lambda changed: share[changed])
    if share[better] >= max(MOST_ON_TISSUE, given + MORE_ON_TISSUE):
        logger.warning(
            "Slide %r: %.0f %% of the spots lie on tissue in image %r, and %.0f %% would if %s. Check the positions of the spots "
            "(x to the right, y down, in pixels of the image) or the transformation between spots and image.",
            slide.name, 100 * given, slide.image.name, 100 * share[better], better,
        )  # fmt: skip
    elif given < FEW_ON_TISSUE:
        logger.warning(
            "Slide %r: only %.0f %% of the spots lie on tissue in image %r, the others on glass. Is it the right image, and do "
            "the positions of the spots refer to its pixels?", slide.name, 100 * given, slide.image.name,
        )  # fmt: skip


def _odd_color(pixels: NDArray[np.float64], um_per_px: float | None) -> str | None:
    """What in the colours (3, n), red first, no H&E has; `None` where nothing has."""
    darkness = pixels.min(axis=0)
    nuclei = pixels[:, darkness <= np.percentile(darkness, 5)].mean(axis=1)
    red_blue, blue_green = nuclei[0] - nuclei[2], nuclei[2] - nuclei[1]
    if um_per_px is not None and um_per_px <= NUCLEI_UM and red_blue > BROWN[0] and blue_green < BROWN[1]:
        return (
            f"is red or brown where it is darkest (red {nuclei[0]:.0f}, blue {nuclei[2]:.0f}); nuclei of H&E are blue"
        )
    tissue = pixels[:, darkness <= np.median(darkness)].mean(axis=1)
    if tissue[1] - max(tissue[0], tissue[2]) > MOST_GREEN:
        return f"is green (red {tissue[0]:.0f}, green {tissue[1]:.0f}, blue {tissue[2]:.0f}); H&E is pink to blue"
    return None


def _tissue(image: SlideImage) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Mask of what has a colour against the glass, and width and height of the image; `None` where no glass is seen."""
    level = image.levels[-1]
    if level.shape[1] * level.shape[2] > MOST_PX:
        return None
    pixels = np.moveaxis(Tiles(level, levels=image.levels).window(slice(None), slice(None)), 0, -1)
    step = -(-max(pixels.shape[:2]) // SIDE_PX)
    rows, columns = (side // step for side in pixels.shape[:2])
    blocks = pixels[: rows * step, : columns * step].reshape(rows, step, columns, step, 3)
    small = blocks.mean(axis=(1, 3), dtype=np.float32)
    black = (small < BLACK).all(axis=-1)
    if black.all():
        return None
    lightness = small.mean(axis=-1)
    glass = np.median(small[lightness >= np.percentile(lightness[~black], 75)], axis=0)
    if glass.min() < GLASS[0] or np.ptp(glass) > GLASS[1]:
        return None
    # the last rows and columns, less than a step, are left out
    size = np.array([columns, rows]) * step * image.downsampling[-1]
    return ~black & (np.ptp(small / glass, axis=-1) >= MIN_COLOR), size


def _arranged(centers: NDArray[np.float64], size: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Centres (n_spots, 2) as they are, and with axes swapped and mirrored in all ways; and what was done, in words."""
    for swapped, *mirrored in product((False, True), repeat=3):
        done = ["x and y were swapped"] * swapped
        done += [f"{axis} was mirrored" for axis, turned in zip("xy", mirrored, strict=True) if turned]
        xy = centers[:, ::-1] if swapped else centers
        yield " and ".join(done), np.where(mirrored, size - xy, xy)


def _share_on(mask: NDArray[np.bool_], places: NDArray[np.float64]) -> float:
    """Share of places (n, 2), x and y from 0 to 1, on a mask (height, width)."""
    x, y = np.floor(places * mask.shape[::-1]).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return float(mask[y[inside], x[inside]].sum() / len(places))
