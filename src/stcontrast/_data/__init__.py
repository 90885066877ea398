"""One table of spots over all slides, and what is computed of it without learning: design, genes, folds."""

from stcontrast._data.checks import warn_of_glass
from stcontrast._data.design import (
    MAX_RANGED,
    TIES,
    SlideMoments,
    Standardize,
    block_of_column,
    build_design,
    column_parts,
    design_of_some,
    neighbor_means,
    neighbor_ranges,
    parts_of_slide,
    set_out,
    standardize_slides,
    surroundings,
)
from stcontrast._data.folds import Fold, inner_folds
from stcontrast._data.gather import depth_of, gather, stack_positions, stack_tables, stacked_column
from stcontrast._data.genes import (
    choose_genes,
    columns_of_genes,
    lost_genes,
    n_variable_genes,
)
from stcontrast._data.lattice import lattice_coordinates, nearest_spots, sequences
from stcontrast._data.spots import Prediction, Spots, log_normalize, log_normalize_sparse

__all__ = [
    "MAX_RANGED",
    "TIES",
    "Fold",
    "Prediction",
    "SlideMoments",
    "Spots",
    "Standardize",
    "block_of_column",
    "build_design",
    "choose_genes",
    "column_parts",
    "columns_of_genes",
    "depth_of",
    "design_of_some",
    "gather",
    "inner_folds",
    "lattice_coordinates",
    "log_normalize",
    "log_normalize_sparse",
    "lost_genes",
    "n_variable_genes",
    "nearest_spots",
    "neighbor_means",
    "neighbor_ranges",
    "parts_of_slide",
    "sequences",
    "set_out",
    "stack_positions",
    "stack_tables",
    "stacked_column",
    "standardize_slides",
    "surroundings",
    "warn_of_glass",
]
