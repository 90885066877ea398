"""What a contrast can be chosen by: names that options are checked against, without torch."""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["LOSSES", "ExpressionLoss", "Loss", "Negatives", "Targets", "Variant"]

type Loss = Literal["info_nce", "similarity_target", "soft_target", "sigmoid"]
type ExpressionLoss = Literal["squared", "rank"]
type Negatives = Literal["all", "within-slide", "exclude-neighbours"]
type Targets = Literal["embedding", "input"]
type Variant = Literal["paper", "code"]

LOSSES: Final = ("soft_target", "info_nce", "similarity_target", "sigmoid")
