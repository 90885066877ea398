"""Weights: what a failed download says, caches without a network, and files of other libraries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import errors
from safetensors.torch import save_file

from stcontrast.pp import TimmEncoder, TorchvisionEncoder
from stcontrast.pp._encoders import encoder_from_spec, resolve_encoder
from stcontrast.pp._encoders.networks import TORCHVISION_NAMES, TorchvisionWeightsError

if TYPE_CHECKING:
    from pathlib import Path

CROPS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
WAYS = r"local file \(`weights`\).*HF_HOME.*HF_HUB_OFFLINE=1.*encoder='texture'.*`pretrained=False`"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("timm.create_model", fail)


# --- downloads


@pytest.mark.parametrize("error", [FileNotFoundError("no cache"), ConnectionError("offline"), OSError("no route")])
def test_a_failed_download_says_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, error)
    with pytest.raises(ConnectionError, match=rf"'resnet18' could not be downloaded \({error}\). .*{WAYS}"):
        TimmEncoder("resnet18")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["resnet18", "h0-mini", "hf-hub:foo/bar"])
def test_a_download_without_a_network_fails_at_once(name: str) -> None:
    gated = "They are gated: ask for access at https://huggingface.co/bioptimus/H0-mini" if name == "h0-mini" else ""
    with pytest.raises(ConnectionError, match=rf"could not be downloaded .*{gated}.*{WAYS}"):
        resolve_encoder(name)


def test_gated_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    response: Any = type("Response", (), {"headers": {}, "request": None})()
    refuse(monkeypatch, errors.GatedRepoError("401", response=response))
    said = rf"are gated \(licence: CC-BY-NC-ND-4.0\): ask for access at .*MahmoodLab/uni, then `hf auth login`.*{WAYS}"
    with pytest.raises(PermissionError, match=said):
        TimmEncoder("uni")
    refuse(monkeypatch, errors.RepositoryNotFoundError("404", response=response))
    with pytest.raises(ValueError, match="no model 'foo/bar' on the Hugging Face hub, or it is private"):
        TimmEncoder("hf-hub:foo/bar")


def test_a_copied_cache_needs_no_network(offline: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    repository = timm.models.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = offline / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    save_file(model.state_dict(), local := offline / "w.safetensors")
    encoder = TimmEncoder("test_resnet", size_px=64, device="cpu")
    assert encoder.spec["pretrained"] is True
    np.testing.assert_array_equal(
        encoder(CROPS), TimmEncoder("test_resnet", weights=local, size_px=64, device="cpu")(CROPS)
    )


@pytest.mark.usefixtures("offline")
def test_local_weights_of_a_hub_model_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    create = timm.create_model

    def smaller(name: str, **given: Any) -> Any:
        asked.append(name)
        return create("test_vit", num_classes=0, img_size=224, init_values=given["init_values"])

    monkeypatch.setattr(timm, "create_model", smaller)
    save_file(smaller("", init_values=1e-5).state_dict(), tmp_path / "w.safetensors")
    encoder = resolve_encoder("uni", weights=tmp_path / "w.safetensors")
    assert asked[1:] == ["vit_large_patch16_224"]
    assert encoder.spec["name"] == "hf-hub:MahmoodLab/uni"
    assert encoder.spec["mean"] == [0.485, 0.456, 0.406]
    assert encoder_from_spec(encoder.spec).spec == encoder.spec


def test_local_weights_of_a_transformer_fit_another_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    model = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=64, num_classes=0
    ).eval()
    encoder = TimmEncoder("test_vit", weights=path, size_px=64, device="cpu")
    batch = torch.tensor((CROPS / 255 - np.array(encoder.mean)) / np.array(encoder.std), dtype=torch.float32)
    with torch.no_grad():
        expected = model(batch.permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(encoder(CROPS), expected, rtol=1e-3, atol=1e-4)
    assert "state_dict" not in encoder._model.pretrained_cfg


# --- torchvision's files


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "swin_t"])
def test_features_are_what_enters_torchvisions_last_layer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    save_file(model.state_dict(), path := tmp_path / "w.safetensors")
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    entered: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    batch = torch.tensor((CROPS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], dtype=torch.float32)
    with torch.no_grad():
        model(batch.permute(0, 3, 1, 2))
    encoder = resolve_encoder(f"torchvision/{name}", weights=path, size_px=64)
    found = encoder(CROPS)
    np.testing.assert_allclose(found, entered[0].numpy(), rtol=1e-3, atol=1e-4)
    again = encoder_from_spec(encoder.spec)
    assert again.spec == encoder.spec
    np.testing.assert_array_equal(again(CROPS), found)


def old_densenet(path: Path) -> torchvision.models.DenseNet:
    torch.manual_seed(0)
    model = torchvision.models.densenet121().eval()
    # the files that torchvision publishes are older than the count of batches too
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in model.state_dict().items()
        if "num_batches" not in key
    }
    assert any(".norm.1." in key for key in state)
    torch.save(state, path)
    return model


@pytest.mark.parametrize("name", ["densenet121", "torchvision/densenet121"])
def test_densenets_of_old_are_read(name: str, tmp_path: Path) -> None:
    model = old_densenet(tmp_path / "w.pth")
    model.classifier = torch.nn.Identity()
    batch = torch.tensor((CROPS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], dtype=torch.float32)
    with torch.no_grad():
        expected = model(batch.permute(0, 3, 1, 2)).numpy()
    encoder = resolve_encoder(name, weights=tmp_path / "w.pth", size_px=64)
    np.testing.assert_allclose(encoder(CROPS), expected, rtol=1e-3, atol=1e-4)


def test_torchvisions_file_for_timms_name_makes_torchvisions_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2().eval()
    save_file(model.state_dict(), path := tmp_path / "w.safetensors")
    encoder = resolve_encoder("mobilenetv2_100", weights=path, size_px=64)
    assert isinstance(encoder, TorchvisionEncoder)
    assert encoder.spec["name"] == "torchvision/mobilenet_v2"
    own = TorchvisionEncoder("mobilenet_v2", weights=path, size_px=64)
    np.testing.assert_array_equal(encoder(CROPS), own(CROPS))
    with pytest.raises(TorchvisionWeightsError, match="torchvision's: take `encoder='torchvision/mobilenet_v2'`"):
        TimmEncoder("mobilenetv2_100", weights=path)
    state = model.state_dict() | {"more": torch.zeros(1)}
    save_file(state, path)
    with pytest.raises(ValueError, match="do not fit the model"):
        resolve_encoder("mobilenetv2_100", weights=path)


def test_both_libraries_know_the_names() -> None:
    assert set(TORCHVISION_NAMES) <= set(timm.list_models())
    assert set(TORCHVISION_NAMES.values()) <= set(torchvision.models.list_models(module=torchvision.models))


def test_wrong_torchvision_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classification model 'resnet19': alexnet, "):
        resolve_encoder("torchvision/resnet19")
    with pytest.raises(ValueError, match="'squeezenet1_1' does not end in a linear layer"):
        resolve_encoder("torchvision/squeezenet1_1", pretrained=False)
    with pytest.raises(FileNotFoundError, match="No weights at"):
        resolve_encoder("torchvision/resnet18", weights=tmp_path / "none.pth")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="do not fit the model"):
        resolve_encoder("torchvision/resnet18", weights=tmp_path / "w.safetensors")


def test_a_failed_download_of_torchvisions_names_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        msg = "no route"
        raise OSError(msg)

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(ConnectionError, match=r"'torchvision/resnet18' could not be .*\(no route\).*TORCH_HOME"):
        TorchvisionEncoder("resnet18")
