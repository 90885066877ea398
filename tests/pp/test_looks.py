"""What image features say of an image that does not look like H&E, and of spots that miss its tissue."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import stcontrast as stc
from stcontrast._reading import resolve_slides
from stcontrast.pp._features import warn_of_looks
from tests.real_data import require
from tests.slides import olfactory_bulb, stutility
from tests.synthetic import hexagonal, slide, visium_adata

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

PINK = (214, 140, 190)
GLASS = (243, 241, 244)


def stained(*, size: tuple[int, int] = (300, 300), seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A piece of tissue that no mirror or turn maps onto itself, and spots on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    tissue = (x < 150) & (y < 40 + x / 2)
    pixels = np.where(tissue[..., None], PINK, GLASS) + rng.normal(0, 4, (*size, 3))
    xy = 6 + hexagonal(60, 60, 8.0)
    inside = xy[(xy < (size[1], size[0])).all(axis=1)]
    columns, rows = inside.astype(int).T
    return pixels.clip(0, 255).astype(np.uint8), inside[tissue[rows, columns]]


def as_anndata(pixels: NDArray[np.uint8], xy: NDArray[np.float64]) -> AnnData:
    adata = visium_adata(pixels, xy, factor=1.0)
    del adata.uns["spatial"]["lib"]["images"]["lowres"]
    adata.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] = 4.0
    return adata


def said(data: SpatialData | AnnData, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        stc.pp.image_features(data, encoder="color", field_um=20, um_per_px=1.0)
    return caplog.text


FLUORESCENCE = {
    "inverted": lambda pixels: 255 - pixels,
    "one bright stain": lambda pixels: np.where([True, False, False], 255 - pixels, 8),
    "a mask of 0 and 1": lambda pixels: (pixels < 200).astype(np.uint8),
}


@pytest.mark.situation("Images", "An RGB image is dark under the spots, as fluorescence is", "warning", "is dark under")
@pytest.mark.parametrize("make", [slide, as_anndata], ids=["SpatialData", "AnnData"])
@pytest.mark.parametrize("change", FLUORESCENCE.values(), ids=FLUORESCENCE)
def test_a_dark_image_is_no_h_and_e(
    make: Callable[..., SpatialData | AnnData],
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pixels, xy = stained()
    assert "is dark under the spots" in said(make(change(pixels).astype(np.uint8), xy), caplog)


def with_nuclei(pixels: NDArray[np.uint8], *, color: tuple[int, int, int] = (45, 45, 100), share: float = 0.1):
    """Dark dots in the tissue."""
    tissue = (pixels < 225).any(axis=-1)
    dots = tissue & (np.random.default_rng(1).uniform(size=tissue.shape) < share)
    return np.where(dots[..., None], np.array(color, dtype=np.uint8), pixels)


ODD = {
    "blue, green, red": (lambda pixels: with_nuclei(pixels)[..., ::-1], "is red or brown where it is darkest"),
    "inverted, its stain strong": (lambda pixels: 255 - with_nuclei(pixels // 2, share=0), "is green"),
    "brown nuclei (DAB)": (lambda pixels: with_nuclei(pixels, color=(110, 70, 40)), "is red or brown where it is darkest"),
}  # fmt: skip


@pytest.mark.situation(
    "Images", "Colours are in another order, inverted or of another stain", "warning", "under the spots, image"
)
@pytest.mark.parametrize(("change", "told"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("make", [slide, as_anndata], ids=["SpatialData", "AnnData"])
def test_colors_that_no_h_and_e_has(make, change, told, caplog) -> None:
    pixels, xy = stained()
    text = said(make(np.ascontiguousarray(change(pixels)), xy), caplog)
    assert "under the spots, image" in text
    assert told in text


@pytest.mark.parametrize(
    "stain", [(214, 140, 190), (235, 150, 180), (150, 120, 190), (190, 90, 140), (225, 222, 224)], ids=str
)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4])
def test_colors_of_h_and_e(stain, share, caplog) -> None:
    pixels, xy = stained()
    pixels = np.where((pixels < 225).any(axis=-1)[..., None], np.array(stain, dtype=np.uint8), pixels)
    assert "another stain" not in said(slide(with_nuclei(pixels, share=share), xy), caplog)


def test_colors_where_an_image_resolves_no_nuclei(caplog) -> None:
    pixels, xy = stained()
    sdata = slide(with_nuclei(pixels)[..., ::-1].copy(), xy)
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        stc.pp.image_features(sdata, encoder="color", field_um=20, um_per_px=3.0)
    assert "another stain" not in caplog.text


def test_glass_that_is_masked_black_is_no_darkness(caplog: pytest.LogCaptureFixture) -> None:
    pixels, xy = stained()
    pixels[(pixels > 225).all(axis=-1)] = 0
    assert "dark" not in said(slide(pixels, xy), caplog)


ARRANGED = {
    "as it is": lambda xy, width, height: xy,
    "swapped": lambda xy, width, height: xy[:, ::-1],
    "x mirrored": lambda xy, width, height: np.column_stack([width - xy[:, 0], xy[:, 1]]),
    "y mirrored": lambda xy, width, height: np.column_stack([xy[:, 0], height - xy[:, 1]]),
    "turned by half": lambda xy, width, height: (width, height) - xy,
    "turned by a quarter": lambda xy, width, height: np.column_stack([width - xy[:, 1], xy[:, 0]]),
}


@pytest.mark.situation(
    "Tables, shapes and images", "Spots would lie on the tissue if axes were swapped or mirrored", "warning", "would if"
)
@pytest.mark.parametrize("make", [slide, as_anndata], ids=["SpatialData", "AnnData"])
@pytest.mark.parametrize("name", ARRANGED)
def test_axes_that_are_swapped_or_mirrored(
    name: str, make: Callable[..., SpatialData | AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    pixels, xy = stained()
    text = said(make(pixels, ARRANGED[name](xy, 300, 300)), caplog)
    assert ("% would if" in text) == (name != "as it is")
    if name == "swapped":
        assert "100 % would if x and y were swapped." in text
    if name == "y mirrored":
        assert "100 % would if y was mirrored." in text


@pytest.mark.situation(
    "Tables, shapes and images", "Hardly any spot lies on tissue", "warning", "lie on tissue in image"
)
@pytest.mark.parametrize("blank", [True, False], ids=["blank image", "beside the tissue"])
def test_spots_on_glass(blank: bool, caplog: pytest.LogCaptureFixture) -> None:
    pixels, xy = stained(size=(420, 420))
    if blank:
        pixels[:] = 255
    # nowhere on the tissue, whatever is mirrored
    beside = 180 + 0.3 * xy
    text = said(slide(pixels, xy if blank else beside), caplog)
    assert re.search(r"only \d % of the spots lie on tissue in image 's1_he'", text)


def test_a_whole_array_may_lie_on_glass_for_the_most_part(caplog: pytest.LogCaptureFixture) -> None:
    pixels, _ = stained()
    assert "lie on tissue" not in said(slide(pixels, 20 + hexagonal(33, 30, 8.0)), caplog)


def test_tissue_without_any_glass_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.broadcast_to(np.array(PINK, dtype=np.uint8), (200, 200, 3)).copy()
    assert "lie on tissue" not in said(slide(pixels, 20 + hexagonal(12, 12, 8.0)), caplog)


def test_several_encoders_look_once(caplog: pytest.LogCaptureFixture) -> None:
    pixels, xy = stained()
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        stc.pp.image_features(slide(255 - pixels, xy), encoder=["color", "texture"], field_um=20)
    assert caplog.text.count("is dark under") == 1


@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "y mirrored"])
def test_real_slides(turned: bool, caplog: pytest.LogCaptureFixture) -> None:
    folder = require("olfactory_bulb"), require("stutility")
    objects = [olfactory_bulb(folder[0], 5), stutility(folder[1], "MOB2")]
    if not turned:
        # mirrored, they lie on tissue nearly as well
        objects += [olfactory_bulb(folder[0], 7), olfactory_bulb(folder[0], 9)]
    for sdata in objects:
        (found,) = resolve_slides(sdata).slides
        if turned:
            assert found.image is not None
            found.centers[:, 1] = found.image.levels[0].shape[1] - found.centers[:, 1]
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="stcontrast"):
            warn_of_looks(found)
        assert ("would if y was mirrored" in caplog.text) == turned
        assert ("lie on tissue" in caplog.text) == turned


@pytest.mark.parametrize("order", ["red, green, blue", "blue, green, red", "inverted"])
def test_colors_of_real_slides(order: str, caplog: pytest.LogCaptureFixture) -> None:
    with stc.settings.override(data_mirror=str(require("her2st"))):
        (found,) = resolve_slides(stc.datasets.her2st(["C6"])).slides
    assert found.image is not None
    change = {"blue, green, red": lambda level: level[::-1], "inverted": lambda level: 255 - level}.get(
        order, lambda level: level
    )
    odd = replace(found, image=replace(found.image, levels=tuple(change(level) for level in found.image.levels)))
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        warn_of_looks(odd)
    assert ("under the spots, image" in caplog.text) == (order != "red, green, blue")


@pytest.mark.parametrize("seed", [0, 5])
def test_pale_tissue_is_no_sign_of_mirrored_axes(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    for found in resolve_slides(stc.datasets.toy(n_donors=4, seed=seed)).slides:
        with caplog.at_level(logging.WARNING, logger="stcontrast"):
            warn_of_looks(found)
    assert not caplog.text
