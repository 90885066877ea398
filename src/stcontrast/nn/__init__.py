"""The parts that methods are composed of: encoders of one modality, pairs of towers, losses.

What is made of torch is imported when it is asked for; names of options are there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast._lazy import lazily
from stcontrast.nn._choices import LOSSES, ExpressionLoss, Loss, Negatives, Targets, Variant

if TYPE_CHECKING:
    from stcontrast.nn._deep_sets import DeepSets
    from stcontrast.nn._dual_scale import DualScalePair
    from stcontrast.nn._field_pair import FieldPair
    from stcontrast.nn._losses import (
        contrastive_loss,
        distilled_nce,
        fused_nce,
        gaussian_target_loss,
        info_nce,
        one_way_nce,
        rank_loss,
        sigmoid_loss,
        similarity_target_loss,
        soft_target_loss,
        warn_at_chance,
    )
    from stcontrast.nn._momentum_pair import MomentumPair
    from stcontrast.nn._pairs import (
        Contrast,
        HeadPair,
        PairModule,
        SpotModule,
        SpotTable,
        slide_batches,
        steps_of_epoch,
    )
    from stcontrast.nn._slide_pair import SlidePair
    from stcontrast.nn._three_views import OffsetAttention, ThreeViews
    from stcontrast.nn._towers import (
        CrossEncoder,
        HypergraphConvolution,
        HypergraphEncoder,
        ProjectionHead,
        SpotTransformer,
        hyperedges,
    )

_OF_TORCH = {
    "_deep_sets": ("DeepSets",),
    "_dual_scale": ("DualScalePair",),
    "_field_pair": ("FieldPair",),
    "_losses": (
        "contrastive_loss",
        "distilled_nce",
        "fused_nce",
        "gaussian_target_loss",
        "info_nce",
        "one_way_nce",
        "rank_loss",
        "sigmoid_loss",
        "similarity_target_loss",
        "soft_target_loss",
        "warn_at_chance",
    ),
    "_momentum_pair": ("MomentumPair",),
    "_pairs": ("Contrast", "HeadPair", "PairModule", "SpotModule", "SpotTable", "slide_batches", "steps_of_epoch"),
    "_slide_pair": ("SlidePair",),
    "_three_views": ("OffsetAttention", "ThreeViews"),
    "_towers": (
        "CrossEncoder",
        "HypergraphConvolution",
        "HypergraphEncoder",
        "ProjectionHead",
        "SpotTransformer",
        "hyperedges",
    ),
}

__all__ = [
    "LOSSES",
    "Contrast",
    "CrossEncoder",
    "DeepSets",
    "DualScalePair",
    "ExpressionLoss",
    "FieldPair",
    "HeadPair",
    "HypergraphConvolution",
    "HypergraphEncoder",
    "Loss",
    "MomentumPair",
    "Negatives",
    "OffsetAttention",
    "PairModule",
    "ProjectionHead",
    "SlidePair",
    "SpotModule",
    "SpotTable",
    "SpotTransformer",
    "Targets",
    "ThreeViews",
    "Variant",
    "contrastive_loss",
    "distilled_nce",
    "fused_nce",
    "gaussian_target_loss",
    "hyperedges",
    "info_nce",
    "one_way_nce",
    "rank_loss",
    "sigmoid_loss",
    "similarity_target_loss",
    "slide_batches",
    "soft_target_loss",
    "steps_of_epoch",
    "warn_at_chance",
]

__getattr__, __dir__ = lazily(
    __name__, {name: f"{__name__}.{module}" for module, names in _OF_TORCH.items() for name in names}, __all__
)
