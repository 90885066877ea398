from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
import torchvision

import stcontrast as stc
from stcontrast.pp._encoders import EncoderCard, cards, networks
from stcontrast.pp._encoders.cards import PATHOLOGY, TIMM, TORCHVISION, find_card, warn_of_licence

COLUMNS = ["name", "source", "n_features", "size_px", "um_per_px", "licence", "gated", "commercial"]


def on_meta(name: str, **arguments: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **arguments).eval()


def arguments(card: EncoderCard) -> dict[str, Any]:
    return {key: networks._class_named(value) for key, value in card.model_args.items()}


def test_the_table_has_a_row_for_every_name() -> None:
    table = stc.pp.encoders()
    assert list(table.columns) == COLUMNS
    assert table["name"].is_unique
    assert set(table["name"]) == set(cards.encoder_names())
    rows: Any = table.set_index("name")
    assert rows.loc["color", "n_features"] == 35
    assert rows.loc["texture", "n_features"] == 63
    assert rows.loc["resnet50", ["licence", "commercial", "size_px"]].tolist() == ["apache-2.0", True, 224]
    assert rows.loc["uni", ["gated", "commercial", "um_per_px"]].tolist() == [True, False, 0.5]
    assert rows.loc[list(TIMM), "um_per_px"].isna().all()


@pytest.mark.parametrize("name", list(TIMM))
def test_features_of_timm_are_counted_right(name: str) -> None:
    size_px = cards.timm_card(name).size_px or 0
    assert on_meta(name)(torch.empty(1, 3, size_px, size_px, device="meta")).shape == (1, TIMM[name])


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "vit_b_16", "swin_t", "convnext_tiny"])
def test_features_of_torchvision_are_counted_right(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear[-1].in_features == TORCHVISION[name]


def test_pathology_cards_agree_with_lazyslide() -> None:
    registry = pytest.importorskip("lazyslide_models").MODEL_REGISTRY
    for card in PATHOLOGY:
        model = registry[card.name]
        known = (model.encode_dim, model.license, model.is_gated, model.commercial)
        assert (card.n_features, card.licence, card.gated, card.commercial) == known
        assert model.hf_url.casefold().endswith(card.repository.casefold())


def test_normalisation_agrees_with_lazyslide() -> None:
    vision = pytest.importorskip("lazyslide_models.vision")
    transform = vision.h_optimus.get_hoptimus_transform().transforms[-1]
    for name in ("h-optimus-0", "h-optimus-1", "h0-mini"):
        card = find_card(name)
        assert card is not None
        assert (list(card.mean or ()), list(card.std or ())) == (transform.mean, transform.std)
    for name in ("lunit-bt", "lunit-dino-s8"):
        card = find_card(name)
        assert card is not None
        assert (card.mean, card.std) == (vision.lunit.LUNIT_MEAN, vision.lunit.LUNIT_STD)


@pytest.mark.parametrize(("name", "millions"), [("uni", 303.4), ("uni2", 681.4)])
def test_architectures_have_the_published_size(name: str, millions: float) -> None:
    card = find_card(name)
    assert card is not None
    model = on_meta(card.architecture, **arguments(card))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, card.n_features)


@pytest.mark.parametrize("name", ["UNI2-h", "uni2", "hf-hub:MahmoodLab/UNI2-h", "hf_hub:mahmoodlab/uni2-h"])
def test_a_card_is_found_by_any_of_its_names(name: str) -> None:
    card = find_card(name)
    assert card is not None
    assert card.name == "uni2"
    assert find_card("resnet18") is None


def test_a_short_name_brings_what_the_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def create(name: str, **given: Any) -> Any:
        asked.append((name, given))
        return small

    small = timm.create_model("test_vit", num_classes=0, img_size=224, dynamic_img_size=True)
    monkeypatch.setattr(timm, "create_model", create)
    encoder = stc.pp.TimmEncoder("h-optimus-0", device="cpu")
    [(name, given)] = asked
    assert name == "hf-hub:bioptimus/H-optimus-0"
    assert (given["pretrained"], given["num_classes"]) == (True, 0)
    assert (given["init_values"], given["dynamic_img_size"]) == (1e-5, False)
    assert encoder.mean == (0.707223, 0.578729, 0.703617)
    assert encoder.size_px == 224
    stc.pp.TimmEncoder("virchow2", device="cpu")
    assert (asked[1][1]["mlp_layer"], asked[1][1]["act_layer"]) == (timm.layers.SwiGLUPacked, torch.nn.SiLU)


def test_gated_weights_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    card = find_card("uni")
    assert card is not None
    with caplog.at_level(logging.WARNING):
        warn_of_licence(card)
        warn_of_licence(cards.timm_card("resnet18"))
        warn_of_licence(EncoderCard("unknown", "timm"))
    [record] = caplog.records
    assert "'uni' are gated and not for commercial use (licence: CC-BY-NC-ND-4.0)" in record.getMessage()
    assert "https://huggingface.co/MahmoodLab/uni" in record.getMessage()


def test_licences_of_timm_are_read(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    card = cards.timm_card("vit_base_patch16_224.mae")
    assert (card.licence, card.commercial) == ("cc-by-nc-4.0", False)
    monkeypatch.setattr(networks, "timm_card", lambda _: card)
    with caplog.at_level(logging.WARNING):
        stc.pp.TimmEncoder("test_resnet", pretrained=False, device="cpu")
    assert not caplog.records, "random weights have no licence"
