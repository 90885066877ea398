"""Stain normalisation of crops: transform the stain of each slide to one reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from stcontrast._reading import SlideImage, image_of_element, rgb_size
from stcontrast.pp._crops import Tiles
from stcontrast.pp._tissue import is_black

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


__all__ = ["SlideStain", "StainMethod", "StainNormalizer", "resolve_stain", "stain_from_spec"]

# tissue has at least this optical density (natural logarithm, mean of the channels), as in Macenko et al.
TISSUE_DENSITY: Final = 0.15
# a slide's sample: windows on a regular grid, and a denser one where the first finds little tissue
WINDOW_PX: Final = 128
WINDOWS_ALONG: Final = (12, 36)
ENOUGH_PX: Final = 20_000
FEWEST_PX: Final = 1_000
MOST_PX: Final = 200_000
GLASS_PERCENTILE: Final = 99.0
DARKEST_GLASS: Final = 180.0

type StainMethod = Literal["macenko", "reinhard"]

# squidpy measures optical density in 255/ln(256) per unit of natural logarithm
_SDA: Final = 255.0 / np.log(256.0)
_PUBLISHED: Final[dict[str, dict[str, list[Any]]]] = {
    # the reference of the authors' method as Veta's implementation and most others after it have it
    "macenko": {
        "stain_matrix": [[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]],
        "max_concentrations": [1.9705 * _SDA, 1.0308 * _SDA],
    },
    # region of TCGA-A2-A3XS-DX1, the colour standard of Amgad et al. 2019, as HistomicsTK gives it
    "reinhard": {"mu": [8.74108109, -0.12440419, 0.0444982], "sigma": [0.6135447, 0.10989545, 0.0286032]},
}


@dataclass(frozen=True)
class StainNormalizer:
    """Transform the stain of every slide to one reference, before its crops are encoded.

    The stain of a slide is estimated from this slide alone. Nothing is learned across slides, and a new slide is
    treated in the same way as the training slides.

    Parameters
    ----------
    method
        ``"macenko"``: the colours of haematoxylin and eosin, found as the extreme directions of optical density, and
        the strength of each (its 99th percentile) are mapped to those of the reference. ``"reinhard"``: mean and
        deviation of the tissue's colours in Ruderman's space are mapped to those of the reference, with an effect that
        fades out towards glass. With both methods, glass becomes white.
    reference
        The reference. `None`: a published reference (see Notes). An RGB image of a SpatialData
        (``sdata.images[name]``): its stain. A :class:`squidpy.experimental.im.StainReference` of the same method: as
        fitted by :func:`squidpy.experimental.im.fit_stain_reference` with its default white point.

    Raises
    ------
    TypeError
        If the reference is none of these.
    ValueError
        If the method is unknown, the reference was fitted with another, or no stain can be found in the image.

    Notes
    -----
    squidpy fits the stains. For Macenko's method, squidpy's own transformation changes the colours of the stains but
    not their strength. Here both change, as in the paper. The published reference for Macenko's method has the stain
    vectors (0.5626, 0.7201, 0.4062) and (0.2159, 0.8012, 0.5581) and the strengths 1.9705 and 1.0308, from the widely
    used implementation by M. Veta. The published reference for Reinhard's method is the mean and deviation of the
    region of slide TCGA-A2-A3XS-DX1 that Amgad et al. use as their standard, as given in HistomicsTK.

    References
    ----------
    Macenko et al., ISBI 2009. Reinhard et al., IEEE Computer Graphics and Applications 2001. Amgad et al., Bioinformatics
    2019.

    Examples
    --------
    >>> import stcontrast as stc
    >>> from stcontrast._reading import resolve_slides
    >>> sdata = stc.datasets.toy(n_donors=1, n_spots=30)
    >>> slide = resolve_slides(sdata).slides[0]
    >>> stain = stc.pp.StainNormalizer("macenko").fit_slide(slide.image)
    >>> stain.apply(stc.pp.crops(sdata, field_um=100, size_px=32)).shape
    (30, 32, 32, 3)
    """

    method: StainMethod = "macenko"
    reference: Any = field(default=None, repr=False, compare=False)
    target: dict[str, list[Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        methods = get_args(StainMethod.__value__)
        if self.method not in methods:
            msg = f"The method of stain normalisation must be one of {list(methods)}, found {self.method!r}."
            raise ValueError(msg)
        object.__setattr__(self, "target", _target(self.method, self.reference))

    @property
    def spec(self) -> dict[str, Any]:
        """Method and reference as plain values, the same for normalisers that do the same."""
        return {"method": self.method, **self.target}

    def fit_slide(self, image: SlideImage) -> SlideStain:
        """Estimate the stain of a slide.

        Parameters
        ----------
        image
            The slide. Of its finest level, 12 × 12 windows of 128 pixels on a regular grid are read, and 36 × 36 more if
            these hold little tissue; always the same ones.

        Returns
        -------
        Transformation of crops of this slide to the reference.

        Raises
        ------
        ValueError
            If the windows hold too little tissue, or its colours are not those of haematoxylin and eosin.
        """
        own, glass = _fitted(image, self.method)
        if self.method == "macenko":
            strength = np.asarray(self.target["max_concentrations"]) / np.asarray(own["max_concentrations"])
            to_reference = _completed(self.target["stain_matrix"]) * [*strength, 1.0]
            from_own = np.linalg.inv(_completed(own["stain_matrix"]))
            return SlideStain(self.method, glass, to_reference @ from_own, np.zeros(3))
        scale = np.asarray(self.target["sigma"]) / np.asarray(own["sigma"])
        shift = np.asarray(self.target["mu"]) - scale * np.asarray(own["mu"])
        return SlideStain(self.method, glass, np.diag(scale), shift)


@dataclass(frozen=True, eq=False)
class SlideStain:
    """Transformation of the stain of one slide to the reference. Made by ``StainNormalizer.fit_slide``.

    Attributes
    ----------
    method
        The method that made it.
    glass
        Colour of the slide's glass (3,), which becomes white.
    matrix, shift
        Map (3, 3) and offset (3,) of optical densities (``"macenko"``) or Ruderman's colours (``"reinhard"``).
    """

    method: StainMethod
    glass: NDArray[np.float64]
    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]

    def apply(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transform crops of the slide.

        Parameters
        ----------
        crops
            uint8 RGB (n, height, width, 3). Not changed.

        Returns
        -------
        uint8 RGB of the same shape. Glass is white, black stays black.
        """
        from squidpy.experimental.im import _stain
        from xarray import DataArray

        rgb = DataArray(_on_white(crops, self.glass), dims=("n", "y", "x", "c"))
        white = np.full(3, 255.0)
        density = _stain.rgb_to_sda(rgb, white)
        if self.method == "macenko":
            normalized = _stain.sda_to_rgb(self._mapped(density), white).data
        else:
            recolored = _stain.lab_ruderman_to_rgb(self._mapped(_stain.rgb_to_lab_ruderman(rgb))).data
            share = np.clip(density.data.mean(axis=-1, keepdims=True) / (TISSUE_DENSITY * _SDA), 0, 1)
            normalized = share * recolored + (1 - share) * rgb.data
        return np.where(is_black(crops)[..., None], crops, _as_uint8(normalized))

    def _mapped(self, colors: Any) -> Any:
        matrix, shift = self.matrix.astype(np.float32), self.shift.astype(np.float32)
        return colors.copy(data=colors.data @ matrix.T + shift)


def resolve_stain(stain: str | StainNormalizer | None) -> StainNormalizer | None:
    """A normaliser from the name of a method; a normaliser or `None` as it is.

    Raises
    ------
    ValueError
        If the method is unknown.
    TypeError
        If it is none of these.
    """
    if stain is None or isinstance(stain, StainNormalizer):
        return stain
    if isinstance(stain, str):
        return StainNormalizer(stain)  # type: ignore[arg-type]  # checked there
    msg = f"`stain` must be the name of a method, a StainNormalizer or None, found {type(stain).__name__}."
    raise TypeError(msg)


def stain_from_spec(spec: Mapping[str, Any]) -> StainNormalizer:
    """The normaliser that a record describes, also one that has been on disk."""
    normalizer = StainNormalizer(spec["method"])
    target = {key: np.asarray(spec[key], dtype=np.float64).tolist() for key in normalizer.target}
    object.__setattr__(normalizer, "target", target)
    return normalizer


def _target(method: StainMethod, reference: Any) -> dict[str, list[Any]]:
    if reference is None:
        return _PUBLISHED[method]
    if isinstance(reference, SlideImage):
        return _fitted(reference, method)[0]
    from squidpy.experimental.im import StainReference
    from xarray import DataArray, DataTree

    if isinstance(reference, StainReference):
        if reference.method != method:
            msg = f"The reference was fitted with method {reference.method!r}, `method` is {method!r}."
            raise ValueError(msg)
        return _plain(reference, method)
    if isinstance(reference, DataArray | DataTree) and rgb_size(reference) is not None:
        return _fitted(image_of_element(reference, "reference"), method)[0]
    msg = (
        "`reference` must be an RGB image of a SpatialData (`sdata.images[name]`), a squidpy StainReference, or None, "
        f"found {type(reference).__name__}."
    )
    raise TypeError(msg)


def _fitted(image: SlideImage, method: StainMethod) -> tuple[dict[str, list[Any]], NDArray[np.float64]]:
    """A slide's own stain, by squidpy's fit on a picture made of its sampled tissue; and its glass."""
    import squidpy as sq
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    pixels, glass = _tissue_sample(image)
    sample = SpatialData(
        images={"sample": Image2DModel.parse(pixels.T[:, None], dims=("c", "y", "x"))},
        labels={"sample_tissue": Labels2DModel.parse(np.ones((1, len(pixels)), np.uint8), dims=("y", "x"))},
    )
    try:
        return _plain(sq.experimental.im.fit_stain_reference(sample, "sample", method=method), method), glass
    except (RuntimeError, ValueError) as error:
        msg = f"The stain of image {image.name!r} cannot be estimated ({error}): is it H&E? If not, leave out `stain`."
        raise ValueError(msg) from error


def _plain(reference: Any, method: StainMethod) -> dict[str, list[Any]]:
    if method == "reinhard":
        return {"mu": reference.mu.tolist(), "sigma": reference.sigma.tolist()}
    if reference.max_concentrations is None:
        msg = "The reference lacks `max_concentrations`: fit it with `squidpy.experimental.im.fit_stain_reference`."
        raise ValueError(msg)
    return {
        "stain_matrix": reference.stain_matrix[:, :2].tolist(),
        "max_concentrations": reference.max_concentrations.tolist(),
    }


def _completed(stains: list[Any]) -> NDArray[np.float64]:
    """Unit vectors of both stains and of what is neither, as columns (3, 3)."""
    both = np.asarray(stains) / np.linalg.norm(stains, axis=0)
    rest = np.cross(both[:, 0], both[:, 1])
    return np.column_stack([both, rest / np.linalg.norm(rest)])


def _tissue_sample(image: SlideImage) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pixels of tissue from windows all over a slide: always the same, never the whole slide.

    Parameters
    ----------
    image
        The slide; of its finest level, 12 × 12 windows of 128 pixels are read, and 36 × 36 more where these hold little
        tissue.

    Returns
    -------
    Colours (n, 3) as they are where the glass is white, at most 200 000; and the colour of the glass (3,).

    Raises
    ------
    ValueError
        If there is next to no tissue in the windows.
    """
    finest = Tiles(image.levels[0], levels=image.levels)
    height, width = finest.shape
    found, n_windows, sampled = 0, 0, np.empty((0, 3), dtype=np.uint8)
    for n in WINDOWS_ALONG:
        # one window at a time: what lies between them is not read
        windows = [finest.window(y, x).reshape(3, -1).T for y in _along(height, n) for x in _along(width, n)]
        sampled = np.concatenate([sampled, *windows])
        n_windows += len(windows)
        glass = _glass(sampled)
        pixels = _tissue_pixels(sampled, glass)
        found = len(pixels)
        if found >= ENOUGH_PX or max(height, width) <= n * WINDOW_PX:
            break
    if found < FEWEST_PX:
        msg = (
            f"Image {image.name!r} has almost no tissue ({found} pixels in {n_windows} windows across it): its "
            "stain cannot be estimated. Drop the slide, or leave out `stain`."
        )
        raise ValueError(msg)
    return _as_uint8(_on_white(pixels[:: -(-found // MOST_PX)], glass)), glass


def _along(side: int, n: int) -> list[slice]:
    """Windows along a side: as many as have room, at most n."""
    n = min(n, -(-side // WINDOW_PX))
    starts = np.rint(np.clip((np.arange(n) + 0.5) / n * side - WINDOW_PX / 2, 0, max(side - WINDOW_PX, 0))).astype(int)
    return [slice(start, min(start + WINDOW_PX, side)) for start in starts.tolist()]


def _glass(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour of the glass: the brightest that there is, unless tissue fills the slide; then white."""
    glass = np.percentile(pixels[::7], GLASS_PERCENTILE, axis=0)
    return glass if glass.min() >= DARKEST_GLASS else np.full(3, 255.0)


def _on_white(rgb: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.float32]:
    """Colours as they are where the glass is white."""
    return np.minimum(rgb * (255.0 / glass).astype(np.float32), np.float32(255))


def _tissue_pixels(pixels: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.uint8]:
    density = -np.log((_on_white(pixels, glass) + 1) / 256).mean(axis=-1)
    return pixels[(density > TISSUE_DENSITY) & ~is_black(pixels)]


def _as_uint8(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Rounded and clipped."""
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
