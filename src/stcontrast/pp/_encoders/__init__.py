"""Frozen encoders: a batch of crops in, numbers out."""

from __future__ import annotations

from stcontrast.pp._encoders.cards import EncoderCard, encoders
from stcontrast.pp._encoders.lazyslide import LazySlideEncoder
from stcontrast.pp._encoders.networks import TimmEncoder, TorchvisionEncoder
from stcontrast.pp._encoders.plain import N_COLOR, CallableEncoder, ColorEncoder, TextureEncoder
from stcontrast.pp._encoders.resolve import (
    AnyEncoder,
    Encoder,
    encoder_from_spec,
    fingerprint,
    identity,
    plain_model_args,
    resolve_encoder,
    resolve_encoders,
)
from stcontrast.pp._encoders.torch import no_downloads

__all__ = [
    "N_COLOR",
    "AnyEncoder",
    "CallableEncoder",
    "ColorEncoder",
    "Encoder",
    "EncoderCard",
    "LazySlideEncoder",
    "TextureEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "encoder_from_spec",
    "encoders",
    "fingerprint",
    "identity",
    "no_downloads",
    "plain_model_args",
    "resolve_encoder",
    "resolve_encoders",
]
