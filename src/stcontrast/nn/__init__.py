"""The parts that methods are composed of: encoders of one modality, pairs of towers, losses."""

from __future__ import annotations

from stcontrast.nn._losses import (
    LOSSES,
    Loss,
    contrastive_loss,
    fused_nce,
    info_nce,
    sigmoid_loss,
    similarity_target_loss,
    soft_target_loss,
    warn_at_chance,
)
from stcontrast.nn._pairs import Contrast, HeadPair, Negatives, PairModule, SpotTable, Targets
from stcontrast.nn._towers import (
    CrossEncoder,
    HypergraphConvolution,
    HypergraphEncoder,
    ProjectionHead,
    SpotTransformer,
    hyperedges,
)

__all__ = [
    "LOSSES",
    "Contrast",
    "CrossEncoder",
    "HeadPair",
    "HypergraphConvolution",
    "HypergraphEncoder",
    "Loss",
    "Negatives",
    "PairModule",
    "ProjectionHead",
    "SpotTable",
    "SpotTransformer",
    "Targets",
    "contrastive_loss",
    "fused_nce",
    "hyperedges",
    "info_nce",
    "sigmoid_loss",
    "similarity_target_loss",
    "soft_target_loss",
    "warn_at_chance",
]
