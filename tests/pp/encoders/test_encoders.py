from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import stcontrast as stc
from stcontrast.pp import ColorEncoder, Encoder, TextureEncoder, TimmEncoder
from stcontrast.pp._encoders import CallableEncoder, encoder_from_spec, resolve_encoder
from tests.real_data import require

if TYPE_CHECKING:
    from pathlib import Path

CROPS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def small(**changes: Any) -> TimmEncoder:
    arguments: dict[str, Any] = {"pretrained": False, "size_px": 32, "device": "cpu"}
    return TimmEncoder("test_resnet", **(arguments | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "seed7.safetensors"
    save_file(small(seed=7)._model.state_dict(), path)
    return path


# --- colour


def test_color_is_what_it_says() -> None:
    # Ruifrok and Johnston's stains, written out
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    rgb = CROPS.reshape(4, -1, 3) / 255
    density = np.log(np.maximum(rgb, 1e-6)) / np.log(1e-6)
    hed = np.maximum(density @ np.linalg.inv(stains), 0)[..., :2]
    channels = np.concatenate([rgb, hed], axis=2)
    levels = [np.quantile(channels, q, axis=1) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    expected = np.concatenate([channels.mean(axis=1), channels.std(axis=1), *levels], axis=1)
    found = ColorEncoder()(CROPS)
    assert found.shape == (4, 35)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_color_does_not_see_where_things_lie() -> None:
    turned = np.rot90(CROPS, axes=(1, 2))[:, ::-1]
    np.testing.assert_allclose(ColorEncoder()(turned), ColorEncoder()(CROPS), atol=1e-6)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_crops_have_finite_color(value: int) -> None:
    found = ColorEncoder()(np.full((2, 8, 8, 3), value, dtype=np.uint8))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, :3], value / 255, atol=1e-6)
    np.testing.assert_allclose(found[:, 5:10], 0, atol=1e-6)


# --- timm


def test_the_seed_settles_random_weights() -> None:
    one, again, other = (small(seed=seed)(CROPS) for seed in (1, 1, 2))
    assert one.shape == (4, 96)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_the_sessions_random_numbers_are_left_alone() -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002

    before = states()
    small()(CROPS)
    assert states() == before


def test_features_are_the_pooled_output_of_normalised_crops() -> None:
    encoder = small(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    batch = (CROPS / 255.0 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    with torch.no_grad():
        maps = encoder._model.forward_features(torch.tensor(np.moveaxis(batch, -1, 1), dtype=torch.float32))
    np.testing.assert_allclose(encoder(CROPS), maps.mean(dim=(2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_crop_is_encoded_by_itself_and_weights_do_not_change() -> None:
    encoder = small()
    together = encoder(CROPS)
    np.testing.assert_allclose(np.concatenate([encoder(crop[None]) for crop in CROPS]), together, atol=1e-5)
    assert not encoder._model.training
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())


def test_timm_says_size_and_normalisation_unless_told() -> None:
    default = TimmEncoder("test_resnet", pretrained=False, device="cpu")
    assert default.size_px == 160
    assert default.mean == pytest.approx((0.485, 0.456, 0.406), abs=0.1)
    told = small(mean=[0, 0, 0], std=[1, 1, 1])
    assert (told.size_px, told.mean, told.std) == (32, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_local_weights_are_loaded(saved: Path, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    if file.endswith("pth"):
        torch.save(load_file(saved), path)
    else:
        path.write_bytes(saved.read_bytes())
    encoder = small(pretrained=True, weights=path)
    np.testing.assert_array_equal(encoder(CROPS), small(seed=7)(CROPS))
    assert len(encoder.spec["sha256"]) == 64
    assert encoder.spec["pretrained"] is False


def test_a_classifier_in_the_weights_is_left_out(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    path = tmp_path / "w.safetensors"
    save_file(state | {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}, path)
    np.testing.assert_array_equal(small(weights=path)(CROPS), small(seed=7)(CROPS))
    save_file(state | {"fcx.weight": torch.zeros(10, 96)}, path)
    with pytest.raises(ValueError, match=r"1 are unknown \(\['fcx.weight'\]"):
        small(weights=path)


def test_weights_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved)
    first = next(key for key in state if key.endswith("conv1.weight"))
    path = tmp_path / "w.safetensors"
    save_file({key: value for key, value in state.items() if key != first}, path)
    with pytest.raises(ValueError, match=r"do not fit the model: 1 parameters are missing"):
        small(weights=path)
    save_file(state | {first: torch.zeros(7, 7)}, path)
    with pytest.raises(ValueError, match=r"(?s)do not fit the model: .*size mismatch"):
        small(weights=path)


BROKEN = [
    b"not weights at all, by no means",
    b"root:x:0:0:root:/root:/bin/bash",
    b"",
    b"PK",
    b"q" * 50,
    bytes(range(256)),
]


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_a_broken_file_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        small(weights=tmp_path / file)


def test_an_absent_file_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No weights at '.*w.pth'"):
        TimmEncoder("no_such_model", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet_18", r"cannot make 'resnet_18'.* Did you mean 'resnet18', .*stc.pp.encoders\(\)"),
        ("h-optimus-2", r"cannot make 'h-optimus-2'.* Did you mean .*'h-optimus-1'"),
        ("qqqqqqqq", r"cannot make 'qqqqqqqq': it has no such model, .* of that name\. See"),
        ("test_resnet.no_such_tag", r"cannot make 'test_resnet.no_such_tag': Invalid pretrained tag"),
        ("foo/bar", r"cannot make 'foo/bar': .*Use 'hf-hub:foo/bar'"),
    ],
)
def test_an_unknown_model_is_said(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve_encoder(name, pretrained=False)


def test_real_weights_bring_their_own_normalisation() -> None:
    path = require("encoders", "mobilenetv2_100.imagenet_quant.safetensors")
    half = (0.5, 0.5, 0.5)
    encoder = TimmEncoder("mobilenetv2_100", weights=path, mean=half, std=half, size_px=64, device="cpu")
    default = TimmEncoder("mobilenetv2_100", weights=path, size_px=64, device="cpu")
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = encoder(crops)
    assert found.shape == (2, 1280)
    assert np.isfinite(found).all()
    assert np.abs(found - default(crops)).max() > 0.05


# --- a function of the user's


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        np.ndarray.tolist,
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
    ],
    ids=["array", "list", "tensor with gradient", "bfloat16"],
)
def test_a_function_may_return_arrays_or_tensors(convert: Any) -> None:
    means = CROPS.mean(axis=(1, 2))
    found = CallableEncoder(lambda crops: convert(crops.mean(axis=(1, 2))), size_px=32)(CROPS)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means, rtol=1e-2)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (4, 2, 2), ()])
def test_a_function_must_return_a_row_a_crop(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must return an array \(4, n_features\), found shape"):
        CallableEncoder(lambda _: np.zeros(shape))(CROPS)


# --- what an argument stands for


def test_arguments_are_resolved() -> None:
    assert resolve_encoder("color") == ColorEncoder(64)
    assert resolve_encoder("color", size_px=40) == ColorEncoder(40)
    assert resolve_encoder("texture") == TextureEncoder(64)
    assert resolve_encoder("texture", size_px=40) == TextureEncoder(40)
    timm = resolve_encoder("test_resnet", pretrained=False, size_px=48)
    assert isinstance(timm, TimmEncoder)
    assert timm.size_px == 48
    assert resolve_encoder(timm) is timm
    assert resolve_encoder(timm, size_px=48) is timm
    function = resolve_encoder(np.mean)
    assert isinstance(function, CallableEncoder)
    assert function.size_px == 224
    assert resolve_encoder(np.mean, size_px=10).size_px == 10
    assert all(isinstance(encoder, Encoder) for encoder in (ColorEncoder(), TextureEncoder(), timm, function))


def test_arguments_that_contradict_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="`size_px` is 32, but the encoder takes 64"):
        resolve_encoder(ColorEncoder(), size_px=32)
    for encoder in (ColorEncoder(), TextureEncoder(), np.mean):
        with pytest.raises(ValueError, match="`weights` goes with the name of a timm model"):
            resolve_encoder(encoder, weights=saved)
    for name in ("color", "texture"):
        with pytest.raises(ValueError, match=f"'{name}' has no weights"):
            resolve_encoder(name, weights=saved)
    with pytest.raises(TypeError, match=r"must be 'texture', 'color', the name of a timm model or .*, found int"):
        resolve_encoder(3)  # type: ignore[arg-type]


def test_the_record_brings_the_encoder_back(saved: Path) -> None:
    for encoder in (ColorEncoder(32), TextureEncoder(32), small(seed=3), small(weights=saved, mean=(0, 0, 0))):
        again = encoder_from_spec(encoder.spec)
        assert again.spec == encoder.spec
        np.testing.assert_allclose(again(CROPS), encoder(CROPS), atol=1e-5)


def test_what_cannot_be_brought_back_says_so(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callable 'mean'.*give `encoder`"):
        encoder_from_spec(CallableEncoder(np.mean).spec)
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved.read_bytes())
    spec = small(weights=path).spec
    save_file(small(seed=8)._model.state_dict(), path)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        encoder_from_spec(spec)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="No weights"):
        encoder_from_spec(spec)


def test_public_names() -> None:
    encoders = {"ColorEncoder", "TextureEncoder", "TimmEncoder", "TorchvisionEncoder", "LazySlideEncoder", "Encoder"}
    assert encoders | {"EncoderCard", "encoders", "crops", "image_features"} <= set(stc.pp.__all__)
