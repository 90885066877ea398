"""Facts about encoders: names, licences, access, and the µm/px of their training."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from stcontrast.pp._encoders.plain import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "EncoderCard",
    "encoder_names",
    "encoders",
    "find_card",
    "is_lazyslide_model",
    "lazyslide_card",
    "lazyslide_models",
    "timm_card",
    "warn_of_licence",
]

logger = logging.getLogger(__name__)

RGB = tuple[float, float, float]

IMAGENET_MEAN: Final[RGB] = (0.485, 0.456, 0.406)
IMAGENET_STD: Final[RGB] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderCard:
    """Facts about an encoder. `None` means unknown.

    Parameters
    ----------
    name
        The value to pass as `encoder`.
    source
        Where it comes from: ``"built in"``, ``"timm"``, ``"torchvision"``, ``"hf-hub"`` or ``"lazyslide"``.
    n_features
        Features of a crop.
    size_px
        Side of its input in pixels.
    um_per_px
        µm per pixel of the slides in its training; `None` for photographs and mixed magnifications.
    licence
        Licence of the weights.
    gated
        Whether the weights are available only on request.
    commercial
        Whether the licence allows commercial use.
    model
        The name in timm, if it differs.
    architecture
        timm's name of the network, to load local weights of a model on the hub.
    model_args
        Further arguments for timm. Classes are given by name.
    mean, std
        Normalisation, if timm's configuration is not reliable.

    Examples
    --------
    >>> import stcontrast as stc
    >>> stc.pp.EncoderCard(name="mine", source="hf-hub", n_features=512, size_px=224).gated
    False
    """

    name: str
    source: str
    n_features: int | None = None
    size_px: int | None = None
    um_per_px: float | None = None
    licence: str | None = None
    gated: bool = False
    commercial: bool | None = None
    model: str = ""
    architecture: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)
    mean: RGB | None = None
    std: RGB | None = None

    @property
    def repository(self) -> str:
        """Address on the hub, owner/model; empty if it has none."""
        return self.model.partition(":")[2]


COLUMNS: Final = tuple(column.name for column in fields(EncoderCard))[:8]

# name and number of features: what timm and torchvision do not say without a network
TIMM: Final[dict[str, int]] = {
    "resnet18": 512,
    "resnet50": 2048,
    "densenet121": 1024,
    "mobilenetv2_100": 1280,
    "efficientnet_b0": 1280,
    "convnext_tiny": 768,
    "vit_small_patch16_224": 384,
    "vit_base_patch16_224": 768,
    "swin_tiny_patch4_window7_224": 768,
    "vit_small_patch14_dinov2": 384,
    "vit_base_patch14_dinov2": 768,
}
TORCHVISION: Final[dict[str, int]] = {
    "resnet18": 512,
    "resnet50": 2048,
    "densenet121": 1024,
    "mobilenet_v2": 1280,
    "efficientnet_b0": 1280,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "swin_t": 768,
}


def _pathology(name: str, repository: str, n_features: int, licence: str, **facts: Any) -> EncoderCard:
    known: dict[str, Any] = {"size_px": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD} | facts
    model = f"hf-hub:{repository}"
    return EncoderCard(name=name, source="hf-hub", n_features=n_features, licence=licence, model=model, **known)


NON_COMMERCIAL: Final[dict[str, Any]] = {"gated": True, "commercial": False}
H_OPTIMUS: Final[dict[str, Any]] = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "um_per_px": 0.5,
}
LUNIT: Final[dict[str, Any]] = {
    "mean": (0.70322989, 0.53606487, 0.66096631),
    "std": (0.21716536, 0.26081574, 0.20723464),
    "commercial": False,
}
LUNIT_LICENCE: Final = "lunit-non-commercial"
SWIGLU: Final[dict[str, Any]] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
UNI: Final[dict[str, Any]] = {"init_values": 1e-5, "dynamic_img_size": True}
UNI2: Final[dict[str, Any]] = UNI | SWIGLU | {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
}  # fmt: skip

PATHOLOGY: Final = (
    _pathology("uni", "MahmoodLab/uni", 1024, "CC-BY-NC-ND-4.0", um_per_px=0.5, model_args=UNI,
               architecture="vit_large_patch16_224", **NON_COMMERCIAL),
    _pathology("uni2", "MahmoodLab/UNI2-h", 1536, "CC-BY-NC-ND-4.0", model_args=UNI2,
               architecture="vit_giant_patch14_224", **NON_COMMERCIAL),
    _pathology("gigapath", "prov-gigapath/prov-gigapath", 1536, "Apache 2.0 with conditions", um_per_px=0.5,
               **NON_COMMERCIAL),
    _pathology("virchow", "paige-ai/Virchow", 2560, "Apache 2.0", um_per_px=0.5, model_args=SWIGLU, gated=True,
               commercial=True),
    _pathology("virchow2", "paige-ai/Virchow2", 2560, "CC-BY-NC-ND-4.0", model_args=SWIGLU, **NON_COMMERCIAL),
    _pathology("h-optimus-0", "bioptimus/H-optimus-0", 1536, "Apache 2.0", commercial=True,
               model_args={"init_values": 1e-5, "dynamic_img_size": False}, **H_OPTIMUS),
    _pathology("h-optimus-1", "bioptimus/H-optimus-1", 1536, "CC-BY-NC-ND-4.0",
               model_args={"init_values": 1e-5, "dynamic_img_size": False}, **H_OPTIMUS, **NON_COMMERCIAL),
    _pathology("h0-mini", "bioptimus/H0-mini", 1536, "CC-BY-NC-ND-4.0", model_args=SWIGLU, **H_OPTIMUS,
               **NON_COMMERCIAL),
    _pathology("lunit-bt", "1aurent/resnet50.lunit_bt", 2048, LUNIT_LICENCE, **LUNIT),
    _pathology("lunit-mocov2", "1aurent/resnet50.lunit_mocov2", 2048, LUNIT_LICENCE, **LUNIT),
    _pathology("lunit-swav", "1aurent/resnet50.lunit_swav", 2048, LUNIT_LICENCE, **LUNIT),
    _pathology("lunit-dino-s8", "1aurent/vit_small_patch8_224.lunit_dino", 384, LUNIT_LICENCE, **LUNIT),
    _pathology("lunit-dino-s16", "1aurent/vit_small_patch16_224.lunit_dino", 384, LUNIT_LICENCE, **LUNIT),
)  # fmt: skip


def encoders() -> pd.DataFrame:
    """Table of the encoders that have a short name, one per row.

    The facts come from the installed timm and torchvision, and from lazyslide-models if it is installed. No network is
    built and nothing is downloaded. Other names of timm and of the Hugging Face hub work as well.

    Returns
    -------
    Columns of :class:`EncoderCard`: name (the value to pass as `encoder`), source, n_features, size_px, um_per_px (of
    the training), licence (of the weights), gated, commercial. Unknown values are `None` or NaN.

    Examples
    --------
    >>> import stcontrast as stc
    >>> table = stc.pp.encoders().set_index("name")
    >>> table.loc["uni", ["source", "licence"]].tolist()
    ['hf-hub', 'CC-BY-NC-ND-4.0']
    """
    cards = [*_plain_cards(), *map(timm_card, TIMM), *_torchvision_cards(), *PATHOLOGY, *_lazyslide_cards()]
    rows = [[getattr(card, column) for column in COLUMNS] for card in cards]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    sizes = {column: table[column].astype("Int64") for column in ("n_features", "size_px")}
    return table.assign(**sizes, um_per_px=table["um_per_px"].astype(float))


def encoder_names() -> list[str]:
    """Names in :func:`encoders`."""
    own = [card.name for card in PATHOLOGY]
    return [*PLAIN, *TIMM, *(f"torchvision/{name}" for name in TORCHVISION), *own, *lazyslide_models()]


def find_card(name: str) -> EncoderCard | None:
    """Card of a pathology model by its short name or its address on the hub, in any case; `None` if there is none."""
    wanted = name.casefold().removeprefix("hf_hub:").removeprefix("hf-hub:")
    for card in PATHOLOGY:
        repository = card.repository.casefold()
        if wanted in (card.name, repository, repository.partition("/")[2]):
            return card
    return None


def timm_card(name: str) -> EncoderCard:
    """Card of a timm model, as its configuration says."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    licence = config.license if config is not None else None
    return EncoderCard(
        name=name,
        source="timm",
        n_features=TIMM.get(name),
        size_px=config.input_size[-1] if config is not None else None,
        licence=licence,
        commercial=_commercial(licence),
        model=f"hf-hub:{config.hf_hub_id}" if config is not None and config.hf_hub_id else "",
    )


def lazyslide_models() -> dict[str, Any]:
    """Image models (classes) of the installed lazyslide-models by name; none where it is not installed."""
    if importlib.util.find_spec("lazyslide_models") is None:
        return {}
    from lazyslide_models import MODEL_REGISTRY

    return {name: model for name, model in MODEL_REGISTRY.items() if is_lazyslide_model(model)}


def is_lazyslide_model(model: object) -> bool:
    """Whether an object, or a class, has the methods of lazyslide-models' image models."""
    return all(callable(getattr(model, name, None)) for name in ("encode_image", "get_transform"))


def lazyslide_card(name: str, model: Any) -> EncoderCard:
    """Card of a class of lazyslide-models, as its registry says."""
    licence = model.license if isinstance(model.license, str | None) else ", ".join(model.license)
    return EncoderCard(
        name=name,
        source="lazyslide",
        n_features=model.encode_dim,
        licence=licence,
        gated=bool(model.is_gated),
        commercial=model.commercial,
        model="hf-hub:" + model.hf_url.removeprefix("https://huggingface.co/") if model.hf_url else "",
    )


def warn_of_licence(card: EncoderCard) -> None:
    """Log one warning where weights are gated or their licence forbids commercial use."""
    if not card.gated and card.commercial is not False:
        return
    kinds = [
        kind for kind, holds in (("gated", card.gated), ("not for commercial use", card.commercial is False)) if holds
    ]
    address = f"; terms and access: https://huggingface.co/{card.repository}" if card.repository else ""
    logger.warning(
        "The weights of %r are %s (licence: %s)%s.", card.name, " and ".join(kinds), card.licence or "unknown", address
    )


def _commercial(licence: str | None) -> bool | None:
    if licence is None:
        return None
    if "-nc" in licence.lower():
        return False
    return True if licence.lower() in ("apache-2.0", "mit", "bsd-3-clause") else None


def _plain_cards() -> Iterator[EncoderCard]:
    import numpy as np

    for name, encoder in PLAIN.items():
        size_px = encoder().size_px
        n_features = encoder()(np.zeros((1, size_px, size_px, 3), dtype=np.uint8)).shape[1]
        yield EncoderCard(name, "built in", n_features, size_px, licence="BSD-3-Clause", commercial=True)


def _torchvision_cards() -> Iterator[EncoderCard]:
    from torchvision.models import get_model_weights

    for name, n_features in TORCHVISION.items():
        size_px = get_model_weights(name).DEFAULT.transforms().crop_size[0]
        yield EncoderCard(f"torchvision/{name}", "torchvision", n_features, size_px)


def _lazyslide_cards() -> Iterator[EncoderCard]:
    own = {card.name for card in PATHOLOGY}
    return (lazyslide_card(name, model) for name, model in lazyslide_models().items() if name not in own)
