"""Options that all torch encoders share, and what identifies an encoder."""

from __future__ import annotations

import json
import logging
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from stcontrast.pp import ColorEncoder, TimmEncoder, TorchvisionEncoder
from stcontrast.pp._encoders import CallableEncoder, encoder_from_spec, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

CROPS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def small(**changes: Any) -> TimmEncoder:
    arguments: dict[str, Any] = {"name": "test_resnet", "pretrained": False, "size_px": 32, "device": "cpu"}
    return TimmEncoder(**(arguments | changes))


def test_symmetries_are_the_mean_over_the_square() -> None:
    plain = small()
    turned = [np.rot90(crops, k, axes=(1, 2)) for crops in (CROPS, CROPS[:, ::-1]) for k in range(4)]
    expected = np.mean([plain(crops) for crops in turned], axis=0)
    encoder = small(symmetries=True)
    np.testing.assert_allclose(encoder(CROPS), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain(CROPS) - expected).max() > 1e-3
    for crops in turned:
        np.testing.assert_allclose(encoder(crops), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_near_and_recorded(precision: str) -> None:
    found, exact = small(precision=precision)(CROPS), small(precision="float32")(CROPS)
    assert found.dtype == np.float32
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03
    assert small(precision=precision).spec == small().spec | {"precision": precision}
    assert fingerprint(small(precision=precision)) != fingerprint(small())


def test_channels_last_changes_no_more_than_rounding() -> None:
    first, last = (small(channels_last=value) for value in (False, True))
    np.testing.assert_allclose(last(CROPS), first(CROPS), rtol=1e-4, atol=1e-5)
    assert last.spec == first.spec
    assert small().channels_last is True
    assert TimmEncoder("test_vit", pretrained=False, device="cpu").channels_last is False


def test_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_(function: Any) -> Any:
        compiled.append(function)
        return lambda batch: 2 * function(batch)

    monkeypatch.setattr(torch, "compile", compile_)
    encoder = small(compile=True)
    np.testing.assert_allclose(encoder(CROPS), 2 * small()(CROPS), rtol=1e-5)
    encoder(CROPS)
    assert len(compiled) == 1
    assert encoder.spec == small().spec


def test_without_a_compiler_the_network_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> Any:
        msg = "No working C++ compiler found\nin cxx"
        raise RuntimeError(msg)

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    encoder = small(compile=True)
    with caplog.at_level(logging.WARNING):
        found = [encoder(CROPS), encoder(CROPS)]
    assert [record.getMessage() for record in caplog.records] == [
        "The network cannot be compiled here (No working C++ compiler found): it runs uncompiled."
    ]
    for features in found:
        np.testing.assert_array_equal(features, small()(CROPS))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "half"}, "must be one of 'float32', .*found 'half'"),
        ({"size_px": -1}, "`size_px` must be a whole number of at least 0, found -1"),
        ({"size_px": "64"}, "`size_px` must be a whole number"),
        ({"name": 3}, "`name` must be a name .*, found 3"),
        ({"name": ""}, "`name` must be a name"),
        ({"pretrained": "no"}, "`pretrained` must be True or False, found 'no'"),
        ({"weights": 7}, "`weights` must be a path"),
        ({"model_args": 3}, "`model_args` must be a mapping"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"mean": "abc"}, "`mean` must be three numbers"),
        ({"mean": (0.5, 0.5)}, "`mean` must be three numbers"),
        ({"std": (0.2, 0.0, 0.2)}, "`std` must be three positive numbers"),
        ({"device": "nonsense"}, "`device` must be a torch device, .*found 'nonsense'"),
        ({"device": 7}, "`device` must be a torch device"),
        ({"compile": 1}, "`compile` must be True or False"),
        ({"symmetries": 8}, "`symmetries` must be True or False"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changes)


@pytest.mark.parametrize("crops", [CROPS.astype(np.float32), CROPS[:, :16], CROPS[0]], ids=["float", "half", "one"])
def test_other_crops_are_refused(crops: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 crops \(n, 32, 32, 3\), found"):
        small()(crops)


def test_crops_are_not_changed_and_may_be_read_only() -> None:
    crops = CROPS.copy()
    crops.flags.writeable = False
    np.testing.assert_array_equal(small()(crops), small()(CROPS))
    np.testing.assert_array_equal(crops, CROPS)


@pytest.mark.parametrize(("pool", "n_features"), [("", 2 * 64), ("token", 64)])
def test_tokens_become_the_class_token_and_the_mean_patch(pool: str, n_features: int) -> None:
    encoder = TimmEncoder("test_vit", pretrained=False, device="cpu", model_args={"global_pool": pool})
    crops = np.random.default_rng(1).integers(0, 256, (2, *2 * [encoder.size_px], 3), dtype=np.uint8)
    mean, std = np.array(encoder.mean), np.array(encoder.std)
    batch = torch.tensor(((crops / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        tokens = encoder._model.forward_features(batch)
    expected = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(dim=1)], axis=1)[:, :n_features]
    np.testing.assert_allclose(encoder(crops), expected, rtol=1e-3, atol=1e-4)
    again = encoder_from_spec(encoder.spec)
    assert again.spec == encoder.spec
    np.testing.assert_array_equal(again(crops), encoder(crops))


def test_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"returns shape \(3, 96, 2, 2\).*global_pool"):
        small(size_px=64, model_args={"global_pool": ""})(np.zeros((3, 64, 64, 3), np.uint8))


def test_a_network_of_fixed_size_is_made_at_the_size_asked_for() -> None:
    encoder = TimmEncoder("test_vit", pretrained=False, size_px=32, device="cpu")
    assert encoder(CROPS).shape == (3, 64)


@pytest.mark.parametrize("compiled", [False, True])
def test_pickles_give_the_same_features(compiled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: lambda batch: function(batch))
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    torchvision = TorchvisionEncoder("mobilenet_v2", pretrained=False, size_px=32, device="cpu")
    vit = TimmEncoder("test_vit", pretrained=False, size_px=32, device="cpu")
    for encoder in (small(weights=path, compile=compiled, symmetries=True), torchvision, vit):
        expected = encoder(CROPS)
        again = pickle.loads(pickle.dumps(encoder))
        np.testing.assert_array_equal(again(CROPS), expected)
        assert again.spec == encoder.spec


def test_records_of_older_versions_still_load() -> None:
    old = {
        "kind": "timm",
        "name": "test_resnet",
        "pretrained": False,
        "weights": "",
        "sha256": "",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "size_px": 32,
        "seed": 3,
    }
    encoder = encoder_from_spec(old)
    assert encoder.spec == old
    half = (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(encoder(CROPS), small(seed=3, mean=half, std=half)(CROPS))


def test_records_are_plain_and_bring_the_options_back() -> None:
    encoder = small(precision="bfloat16", symmetries=True, model_args={"act_layer": "SiLU"})
    spec = json.loads(json.dumps(encoder.spec))
    assert spec == encoder.spec
    again = encoder_from_spec(spec)
    assert again.spec == spec
    np.testing.assert_array_equal(again(CROPS), encoder(CROPS))
    assert np.abs(encoder(CROPS) - small(precision="bfloat16", symmetries=True)(CROPS)).max() > 1e-3


def test_a_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    paths = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for path in paths:
        save_file(state, path)
    one, other = (fingerprint(small(weights=path)) for path in paths)
    assert one == other
    assert len(one) == 64
    save_file({key: value + 1 for key, value in state.items()}, paths[1])
    plain: list[Any] = [
        ColorEncoder(32),
        CallableEncoder(np.mean),
        small(seed=1),
        small(seed=2),
        small(weights=paths[1]),
    ]
    assert len({one, *map(fingerprint, plain)}) == 6
