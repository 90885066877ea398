from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import v2

from stcontrast.pp import LazySlideEncoder
from stcontrast.pp._encoders import CallableEncoder, encoder_from_spec, resolve_encoder

base: Any = pytest.importorskip("lazyslide_models.base")
transformers: Any = pytest.importorskip("transformers")

MEAN, STD = (0.7, 0.58, 0.7), (0.21, 0.23, 0.18)
CROPS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


class Rim(base.ImageModel):
    """Sees the rim of an image: what a centre crop would cut off."""

    def __init__(self, transform: Any) -> None:
        self.model = torch.nn.Conv2d(3, 2, 1)
        self.transform = transform

    def get_transform(self) -> Any:
        return self.transform

    def encode_image(self, image: Any) -> Any:
        return torch.cat([image[:, :, 0].mean(-1), image[:, :, :, -1].mean(-1)], dim=1)


class Processed(Rim):
    """Reads raw images by a processor, as models of transformers do."""

    def __init__(self, processor: Any) -> None:
        super().__init__(None)
        self.img_processor = processor

    def encode_image(self, image: Any) -> Any:
        return super().encode_image(self.img_processor(images=image, return_tensors="pt")["pixel_values"])


def recipe(*steps: Any) -> Any:
    return v2.Compose([v2.ToImage(), *steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def rims(crops: np.ndarray, mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    normal = (crops / 255 - mean) / std
    return np.concatenate([normal[:, 0].mean(axis=1), normal[:, :, -1].mean(axis=1)], axis=1)


@pytest.mark.parametrize(
    "steps",
    [(v2.Resize((64, 64)),), (v2.Resize(80), v2.CenterCrop(64)), (v2.CenterCrop(64),)],
    ids=["resize", "resize and crop", "crop"],
)
def test_nothing_of_the_field_is_cut_off(steps: tuple[Any, ...]) -> None:
    encoder = LazySlideEncoder(Rim(recipe(*steps)), device="cpu")
    assert encoder.size_px == 64
    assert encoder.mean == pytest.approx(MEAN, abs=1e-5)
    assert encoder.std == pytest.approx(STD, abs=1e-5)
    np.testing.assert_allclose(encoder(CROPS), rims(CROPS), atol=1e-4)


def test_a_transform_that_only_normalises_takes_any_size() -> None:
    assert LazySlideEncoder(Rim(recipe()), device="cpu").size_px == 224
    encoder = LazySlideEncoder(Rim(recipe()), size_px=64, device="cpu")
    np.testing.assert_allclose(encoder(CROPS), rims(CROPS), atol=1e-4)


@pytest.mark.parametrize(
    "steps",
    [(v2.Grayscale(3),), (v2.Pad(10, fill=255),), (v2.Resize((32, 64)),), (v2.RandomSolarize(100, p=1.0),)],
    ids=["mixes colours", "pads", "not square", "not linear"],
)
def test_a_transform_that_does_more_is_refused(steps: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="transform of Rim does more than resize, crop and normalise"):
        LazySlideEncoder(Rim(recipe(*steps)), device="cpu")


def test_the_timm_models_of_lazyslide_keep_their_own_features() -> None:
    model = base.TimmModel("test_resnet", pretrained=False)
    encoder = resolve_encoder(model, size_px=160)
    crops = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    config = timm.data.resolve_model_data_config(model.model)
    assert encoder.size_px == 160
    whole = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config["mean"], config["std"])]
    )
    expected = model.encode_image(torch.stack([whole(crop) for crop in crops]))
    np.testing.assert_allclose(encoder(crops), expected.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder))(crops), encoder(crops))


def test_a_processor_that_leaves_crops_whole_is_used() -> None:
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD)
    encoder = resolve_encoder(Processed(processor))
    assert encoder.size_px == 64
    np.testing.assert_allclose(encoder(CROPS), rims(CROPS), atol=1e-4)


def test_a_processor_that_cuts_is_refused() -> None:
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD
    )
    with pytest.raises(ValueError, match=r"processor of Processed resizes or cuts crops of 64 × 64 px"):
        resolve_encoder(Processed(processor))
    with pytest.raises(ValueError, match="has no transform, so that its input size is not known"):
        resolve_encoder(Rim(None))


def test_objects_are_told_from_functions_and_classes() -> None:
    assert isinstance(resolve_encoder(Rim(recipe())), LazySlideEncoder)
    assert isinstance(resolve_encoder(lambda crops: crops.mean(axis=(1, 2))), CallableEncoder)
    with pytest.raises(TypeError, match="found Rim, a class: make an object of it"):
        resolve_encoder(Rim)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="found int"):
        LazySlideEncoder(3)


def test_records_name_what_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(Rim):
        _registry_keys = ("known",)
        license, encode_dim, is_gated, commercial, hf_url = "MIT", 6, False, True, None

        def __init__(self) -> None:
            super().__init__(recipe(v2.Resize((64, 64))))

    monkeypatch.setattr("stcontrast.pp._encoders.resolve.lazyslide_models", lambda: {"known": Known})
    encoder = resolve_encoder("known")
    assert encoder.spec["registered"] is True
    again = encoder_from_spec(encoder.spec)
    assert again.spec == encoder.spec
    np.testing.assert_array_equal(again(CROPS), encoder(CROPS))
    with pytest.raises(ValueError, match="loads its own weights: create the model"):
        resolve_encoder("known", pretrained=False)
    with pytest.raises(ValueError, match=r"lazyslide 'Rim', which is not saved with it: give `encoder`"):
        encoder_from_spec(resolve_encoder(Rim(recipe())).spec)
    with pytest.raises(ValueError, match="has no image model 'other': known"):
        encoder_from_spec(encoder.spec | {"name": "other"})
