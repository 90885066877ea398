"""Tools: embed counts, fit a model, predict expression and subtype from H&E, cross-validate over donors."""

from __future__ import annotations

from stcontrast.tl._classify import classify
from stcontrast.tl._embed_genes import embed_genes
from stcontrast.tl._fit import fit
from stcontrast.tl._predict_expression import predict_expression
from stcontrast.tl.cross_validation import CrossValidation, cross_validate

__all__ = ["CrossValidation", "classify", "cross_validate", "embed_genes", "fit", "predict_expression"]
