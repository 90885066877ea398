"""A model that was loaded asks no address and reads no file of the user's, whatever its spec says."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
import torch

import stcontrast as stc
from stcontrast.fitted import Predictor
from stcontrast.pp._encoders import encoder_from_spec, no_downloads

if TYPE_CHECKING:
    from pathlib import Path

SPEC: dict[str, Any] = {
    "kind": "timm", "name": "resnet18", "pretrained": True, "weights": "", "sha256": "", "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5], "size_px": 64, "seed": 0,
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Addresses that were asked, on a machine with empty caches."""
    addresses: list[Any] = []

    def connect(_: socket.socket, address: Any) -> None:
        addresses.append(address)
        msg = "no network"
        raise OSError(msg)

    def lookup(host: Any, *_: Any, **__: Any) -> Any:
        addresses.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return addresses


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="timm"),
        pytest.param({"name": "hf-hub:somebody/model"}, id="hub"),
        pytest.param({"name": "torchvision/resnet18", "kind": "torchvision"}, id="torchvision"),
        pytest.param({"name": "uni"}, id="gated"),
    ],
)
def test_a_loaded_model_fetches_nothing(asked: list[Any], change: dict[str, Any]) -> None:
    with pytest.raises(
        ConnectionError, match=r"not on this machine.*`stc\.models\.load\(folder, allow_download=True\)`"
    ):
        encoder_from_spec(SPEC | change, allow_download=False)
    assert asked == []


def test_it_is_what_predictions_of_a_loaded_model_do(asked: list[Any], tmp_path: Path) -> None:
    sdata = stc.datasets.toy(n_donors=2, n_spots=20, n_genes=20)
    fitted = stc.tl.fit(sdata, batch_key="donor", method="ridge", encoder="color", field_um=100)
    blocks = [{**block, "encoder": SPEC} for block in fitted.spec["image_features"]]
    changed = Predictor(fitted.method, fitted.spec | {"image_features": blocks})
    changed.moments, changed.calibration, changed.bank = fitted.moments, fitted.calibration, fitted.bank
    changed.save(tmp_path / "model")
    new = stc.datasets.toy(n_donors=1, n_spots=20, n_genes=20, seed=1)
    with pytest.raises(ConnectionError, match="allow_download=True"):
        stc.tl.predict_expression(new, tmp_path / "model")
    assert asked == []
    assert not stc.models.load(tmp_path / "model").allow_download
    assert stc.models.load(tmp_path / "model", allow_download=True).allow_download


@pytest.mark.parametrize("allow_download", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "local-dir:/etc"}, id="folder"),
        pytest.param({"name": "http://evil.example/model"}, id="address"),
        pytest.param({"name": "/etc/passwd"}, id="file"),
        pytest.param({"name": "../model"}, id="path"),
        pytest.param({"model_args": json.dumps({"checkpoint_path": "/tmp/a.pth"})}, id="checkpoint"),
        pytest.param(
            {"model_args": json.dumps({"pretrained_cfg": {"url": "http://evil.example"}})}, id="configuration"
        ),
        pytest.param({"model_args": json.dumps({"pretrained_cfg_overlay": {"file": "/x"}})}, id="overlay"),
    ],
)
def test_addresses_and_files_in_a_spec_are_refused(
    asked: list[Any], change: dict[str, Any], allow_download: bool
) -> None:
    with pytest.raises(ValueError, match="would read files or web addresses"):
        encoder_from_spec(SPEC | change, allow_download=allow_download)
    assert asked == []


def test_a_network_without_weights_is_made(asked: list[Any]) -> None:
    spec = SPEC | {"name": "test_resnet", "pretrained": False}
    assert encoder_from_spec(spec, allow_download=False).size_px == 64
    assert asked == []


def test_settings_are_as_before() -> None:
    before = huggingface_hub.constants.HF_HUB_OFFLINE, torch.hub.urlopen  # type: ignore[attr-defined]
    with no_downloads():
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, torch.hub.urlopen) == before  # type: ignore[attr-defined]
