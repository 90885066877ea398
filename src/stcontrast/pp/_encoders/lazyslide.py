"""Models of lazyslide-models, and others that follow its protocol, as encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from stcontrast.pp._encoders.cards import is_lazyslide_model
from stcontrast.pp._encoders.torch import TorchEncoder

__all__ = ["LazySlideEncoder"]

# transforms are asked with flat images of these colours, and must answer with a flat image each
# no network's input size, so that what comes back at this size was not resized
PROBE_PX: Final = 509
PROBES: Final = np.array([(0, 0, 0), (255, 255, 255), (60, 130, 200), (210, 40, 110)], dtype=np.uint8)


@dataclass
class LazySlideEncoder(TorchEncoder):
    """Encoder from an image model of lazyslide-models, or one that follows its protocol.

    Crops already have the right field of view. The model's transform is therefore not applied, because it may resize
    and centre-crop. Only its input size and normalisation are used, which are found by transforming flat images. A
    model without a transform reads raw images with its own processor. It is accepted if the processor does not cut off
    parts of the crops.

    Parameters
    ----------
    model
        Object with `encode_image` (a batch of images to features) and `get_transform`
        (``lazyslide_models.ImageModelProtocol``). It is moved to `device` and set to evaluation.
    size_px
        Side of the crops in pixels. By default the output size of the transform, or 224 if the transform keeps the
        size.
    mean, std
        Normalisation of RGB in [0, 1]; by default that of the transform.
    device, compile, channels_last
        As in :class:`TimmEncoder`.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast); by default float16 on CUDA and float32 elsewhere.
    symmetries
        Average the features over the eight flips and right-angle rotations of a crop. Takes eight times as long.

    Raises
    ------
    TypeError
        If the object does not follow the protocol.
    ValueError
        If the transform does more than resize, crop and normalise each colour, or if the processor cuts off the rim.

    Examples
    --------
    >>> import lazyslide_models
    >>> import stcontrast as stc
    >>> model = lazyslide_models.MODEL_REGISTRY["uni"]()  # doctest: +SKIP
    >>> encoder = stc.pp.LazySlideEncoder(model)  # doctest: +SKIP
    """

    model: Any
    _raw: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        import torch

        if isinstance(self.model, type) or not is_lazyslide_model(self.model):
            msg = (
                "`model` must be an object with `encode_image` and `get_transform`, found "
                f"{self.model.__name__ if isinstance(self.model, type) else type(self.model).__name__}"
                f"{', a class: make an object of it' if isinstance(self.model, type) else ''}."
            )
            raise TypeError(msg)
        self._check_options()
        transform = self.model.get_transform()
        if transform is None:
            self.size_px, self._raw = self._processor_size(), True
        else:
            size_px, mean, std = _settings(transform, self._name)
            self.size_px, self.mean, self.std = self.size_px or size_px, self.mean or mean, self.std or std
        network = getattr(self.model, "model", None)
        self._adopt(network if isinstance(network, torch.nn.Module) else torch.nn.Identity())

    @property
    def spec(self) -> dict[str, Any]:
        """What tells the encoder from another, name and input. The weights are not known."""
        keys = getattr(type(self.model), "_registry_keys", None)
        normalisation = {
            key: [float(number) for number in value] for key, value in (("mean", self.mean), ("std", self.std)) if value
        }
        spec = {"kind": "lazyslide", "name": keys[0] if keys else self._name, "registered": keys is not None}
        return spec | {"size_px": self.size_px} | normalisation | self._options_spec()

    @property
    def _name(self) -> str:
        return str(getattr(self.model, "name", None) or type(self.model).__name__)

    def _input(self, batch: Any) -> Any:
        return batch.permute(0, 3, 1, 2).contiguous() if self._raw else super()._input(batch)

    def _call(self, batch: Any) -> Any:
        import torch

        return torch.as_tensor(self.model.encode_image(batch))

    def _processor_size(self) -> int:
        """Side of the input of a model that reads raw images, if it reads them whole."""
        processor = next(
            (getattr(self.model, key) for key in ("img_processor", "processor") if hasattr(self.model, key)), None
        )
        if processor is None:
            msg = (
                f"{self._name} has no transform, so that its input size is not known. Give a function from crops to "
                "features as `encoder` instead, and `size_px`."
            )
            raise ValueError(msg)

        def read(image: Any) -> Any:
            return processor(images=image, return_tensors="np")["pixel_values"]

        size_px = self.size_px or int(np.asarray(read(np.zeros((1, 3, PROBE_PX, PROBE_PX), np.uint8))).shape[-1])
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (1, 3, size_px, size_px), dtype=np.uint8)
        values = np.asarray(read(image), dtype=float)
        whole = values.shape == image.shape and all(
            np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999
            for one, other in zip(values[0], image[0], strict=True)
        )
        if not whole:
            msg = (
                f"The processor of {self._name} resizes or cuts crops of {size_px} × {size_px} px (to "
                f"{values.shape[-1]}), which would change the field of view. Try another `size_px`, or give a function "
                "from crops to features as `encoder`."
            )
            raise ValueError(msg)
        return size_px


def _settings(transform: Any, name: str) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Input size, mean and standard deviation of a transform, found by what it does to flat images."""
    flat = [np.broadcast_to(color, (PROBE_PX, PROBE_PX, 3)).copy() for color in PROBES]
    found = [np.asarray(transform(image), dtype=float) for image in flat]
    shapes = {values.shape for values in found}
    shape = next(iter(shapes))
    if len(shapes) == 1 and len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]:
        black, white = (values.mean(axis=(1, 2)) for values in found[:2])
        slope = white - black
        expected = black + slope * (PROBES / 255.0)
        off = max(float(np.abs(values - row[:, None, None]).max()) for values, row in zip(found, expected, strict=True))
        if (slope > 0).all() and off < 1e-3 * float(slope.max()):
            red, green, blue = (-black / slope).round(7).tolist()
            std_red, std_green, std_blue = (1 / slope).round(7).tolist()
            return 224 if shape[1] == PROBE_PX else shape[1], (red, green, blue), (std_red, std_green, std_blue)
    msg = (
        f"The transform of {name} does more than resize, crop and normalise each colour of an image to a square: it cannot "
        "be taken apart. Give a function from crops to features as `encoder` instead."
    )
    raise ValueError(msg)
