from __future__ import annotations

import json
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import squidpy as sq
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

from stcontrast._reading import SlideImage
from stcontrast.pp import StainNormalizer
from stcontrast.pp._stain import resolve_stain, stain_from_spec

METHODS = ["macenko", "reinhard"]
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.22, 0.88, 0.42])


def concentrations(size: int = 400) -> np.ndarray:
    """Haematoxylin and eosin (size, size, 2): nuclei in a pink ground, and a margin of glass."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    tissue = np.hypot(x - size / 2, y - size / 2) < 0.42 * size
    nuclei = (np.sin(x / 2.0) * np.sin(y / 2.5) > 0.4) & tissue
    eosin = tissue * (0.6 + 0.5 * np.sin(x / 37) ** 2) * np.where(nuclei, 0.15, 1.0)
    return np.stack([nuclei * rng.uniform(0.6, 1.2, (size, size)), eosin], axis=-1)


def stained(amount: np.ndarray, *, strength: Any = (1.0, 1.0), turn: float = 0.0, glass: float = 255.0) -> np.ndarray:
    """By the law of Beer and Lambert; `turn` moves the hue of both dyes."""
    dyes = np.stack([HAEMATOXYLIN + turn * EOSIN[::-1], EOSIN + turn * HAEMATOXYLIN])
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    return np.rint(glass * np.exp(-(amount * strength) @ dyes)).astype(np.uint8)


def lazy(pixels: np.ndarray, chunk: int = 128) -> SlideImage:
    return SlideImage("slide", (da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, chunk, chunk)),), (1.0,))


AMOUNT = concentrations()
ORIGINAL = stained(AMOUNT)
# what is compared: crops of the tissue
HERE = np.s_[None, 150:250, 150:250]


def normalized(pixels: np.ndarray, method: str, **kwargs: Any) -> np.ndarray:
    return StainNormalizer(method, **kwargs).fit_slide(lazy(pixels)).apply(pixels[HERE]).astype(float)  # type: ignore[arg-type]


BY_METHOD = {method: normalized(ORIGINAL, method) for method in METHODS}


@settings(max_examples=6)
@given(st.tuples(*[st.floats(0.7, 1.4)] * 2), st.floats(-0.15, 0.15), st.floats(215, 255))
def test_macenko_slides_stained_otherwise_come_out_alike(
    strength: tuple[float, float], turn: float, glass: float
) -> None:
    other = stained(AMOUNT, strength=strength, turn=turn, glass=round(glass))
    assert np.abs(normalized(other, "macenko") - BY_METHOD["macenko"]).mean() < 4


@settings(max_examples=6)
@given(st.floats(0.7, 1.4), st.floats(-0.15, 0.15), st.floats(215, 255))
def test_reinhard_slides_stained_otherwise_come_out_alike(strength: float, turn: float, glass: float) -> None:
    # both dyes by the same factor: Reinhard's space does not hold them apart
    other = stained(AMOUNT, strength=strength, turn=turn, glass=round(glass))
    assert np.abs(normalized(other, "reinhard") - BY_METHOD["reinhard"]).mean() < 6


def test_macenko_brings_pure_dyes_to_those_of_the_reference() -> None:
    stain = StainNormalizer("macenko").fit_slide(lazy(stained(AMOUNT, strength=(0.7, 1.3))))
    pure = stained(np.array([[[[1.0, 0.0], [0.0, 0.6]]]]), strength=(0.7, 1.3))
    density = -np.log((stain.apply(pure)[0, 0] + 1.0) / 256)
    wanted = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
    cosine = (density * wanted).sum(axis=1) / np.linalg.norm(density, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (np.degrees(np.arccos(cosine)) < 6).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_is_its_own_reference(method: str) -> None:
    # the fit looks at tissue only, so that what comes back is what went in
    tile = normalized(ORIGINAL, method, reference=lazy(ORIGINAL))
    difference = np.abs(tile - ORIGINAL[HERE])
    dense = -np.log((ORIGINAL[HERE] + 1.0) / 256).mean(axis=-1) > 0.15
    assert difference[dense].max() <= 1.5


@pytest.mark.parametrize("method", METHODS)
def test_squidpys_reference_gives_what_squidpys_normalisation_gives(method: str) -> None:
    tissue = AMOUNT.sum(axis=-1) > 0
    density = -np.log((ORIGINAL + 1.0) / 256).mean(axis=-1)
    other = stained(AMOUNT, turn=0.12)
    images = {
        name: Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))
        for name, pixels in (("one", ORIGINAL), ("other", other))
    }
    masks = {
        f"{name}_tissue": Labels2DModel.parse((tissue & (density > 0.15)).astype(np.uint8), dims=("y", "x"))
        for name in images
    }
    sdata = SpatialData(images=images, labels=masks)
    reference = sq.experimental.im.fit_stain_reference(sdata, "one", method=method)
    theirs = (
        sq.experimental.im.normalize_stains(sdata, "other", reference, inplace=False)
        .transpose("y", "x", "c")
        .to_numpy()
    )
    ours = normalized(other, method, reference=reference)
    # their Macenko leaves the strengths, which are equal here but for the fit
    dense = density[HERE] > 0.2
    assert np.abs(ours - theirs[HERE])[dense].mean() < 4
    same = StainNormalizer(method, reference=images["one"])  # type: ignore[arg-type]
    for key, value in StainNormalizer(method, reference=reference).spec.items():  # type: ignore[arg-type]
        if key != "method":
            np.testing.assert_allclose(same.spec[key], value, rtol=0.06, atol=0.03)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("glass", [225.0, 255.0])
def test_glass_becomes_white_and_black_stays_black(method: str, glass: float) -> None:
    stain = StainNormalizer(method).fit_slide(lazy(stained(AMOUNT, glass=glass)))  # type: ignore[arg-type]
    crops = np.full((3, 4, 4, 3), 255, dtype=np.uint8)
    crops[1] = int(glass)
    crops[2] = 0
    before = crops.copy()
    found = stain.apply(crops)
    assert found.dtype == np.uint8
    assert found[:2].min() >= 250
    assert found[2].max() == 0
    np.testing.assert_array_equal(crops, before)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_slide_gives_the_same_stain_however_it_is_chunked(method: str) -> None:
    normalizer = StainNormalizer(method)  # type: ignore[arg-type]
    one, two = (normalizer.fit_slide(lazy(ORIGINAL, chunk)) for chunk in (128, 57))
    np.testing.assert_array_equal(one.apply(ORIGINAL[HERE]), two.apply(ORIGINAL[HERE]))


def test_of_a_large_slide_only_windows_are_read() -> None:
    read: list[tuple[int, int]] = []
    tile = np.moveaxis(stained(concentrations(256)), -1, 0)

    def block(block_info: Any = None) -> np.ndarray:
        read.append(tuple(block_info[None]["chunk-location"][1:]))
        return tile

    chunks = ((3,), (256,) * 160, (256,) * 160)
    whole = SlideImage(
        "large", (da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)),), (1.0,)
    )
    with dask.config.set(scheduler="synchronous"):
        StainNormalizer("macenko").fit_slide(whole)
    # a window of 128 px lies in 4 chunks of 256 px at most
    assert 144 <= len(set(read)) <= 4 * 144
    assert len(set(read)) < 160**2 / 40


@pytest.mark.slow
def test_a_small_piece_of_tissue_is_found() -> None:
    pixels = np.full((4000, 4000, 3), 255, dtype=np.uint8)
    # next to nothing of it lies in the windows of the first grid
    pixels[760:960, 760:960] = ORIGINAL[100:300, 100:300]
    found = StainNormalizer("reinhard").fit_slide(lazy(pixels, 1000)).apply(ORIGINAL[HERE]).astype(float)
    assert np.abs(found - normalized(ORIGINAL, "reinhard")).mean() < 15


def test_what_is_no_h_and_e_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'slide' has almost no tissue.*leave out `stain`"):
        StainNormalizer("macenko").fit_slide(lazy(np.full((300, 300, 3), 255, dtype=np.uint8)))
    green = ORIGINAL[..., [1, 0, 1]] // np.array([4, 1, 4], dtype=np.uint8)
    with pytest.raises(ValueError, match=r"cannot be estimated .*is it H&E"):
        StainNormalizer("macenko").fit_slide(lazy(green))


def test_resolve_and_record() -> None:
    assert resolve_stain(None) is None
    normalizer = resolve_stain("reinhard")
    assert normalizer == StainNormalizer("reinhard")
    assert resolve_stain(normalizer) is normalizer
    for one in (StainNormalizer("macenko"), StainNormalizer("reinhard", reference=lazy(ORIGINAL))):
        spec = json.loads(json.dumps(one.spec))
        assert stain_from_spec(spec) == one
        # zarr gives arrays back
        assert (
            stain_from_spec({key: value if key == "method" else np.array(value) for key, value in spec.items()}) == one
        )
    assert StainNormalizer("reinhard", reference=lazy(ORIGINAL)) != StainNormalizer("reinhard")
    with pytest.raises(ValueError, match=r"one of \['macenko', 'reinhard'\], found 'vahadane'"):
        resolve_stain("vahadane")
    with pytest.raises(TypeError, match="`stain` must be the name of a method"):
        resolve_stain(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`reference` must be an RGB image"):
        StainNormalizer(reference="A1")
    other = sq.experimental.im.StainReference(method="reinhard", mu=np.zeros(3), sigma=np.ones(3))
    with pytest.raises(ValueError, match="fitted with method 'reinhard', `method` is 'macenko'"):
        StainNormalizer("macenko", reference=other)
