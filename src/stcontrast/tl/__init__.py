"""Tools: fit a model, predict expression and subtype from H&E, score gene sets, embed, search, cross-validate over donors."""

from __future__ import annotations

from stcontrast.tl._classify import classify
from stcontrast.tl._embed import embed
from stcontrast.tl._embed_genes import embed_genes
from stcontrast.tl._export_geojson import export_geojson
from stcontrast.tl._find_similar import find_similar
from stcontrast.tl._fit import fit
from stcontrast.tl._predict_expression import predict_expression
from stcontrast.tl._predict_slide import predict_slide
from stcontrast.tl._score_genes import score_genes
from stcontrast.tl.cross_validation import CrossValidation, cross_validate

__all__ = [
    "CrossValidation",
    "classify",
    "cross_validate",
    "embed",
    "embed_genes",
    "export_geojson",
    "find_similar",
    "fit",
    "predict_expression",
    "predict_slide",
    "score_genes",
]
