"""Reading: the only part that knows SpatialData, AnnData and WSIData; slides with plain arrays come out."""

from __future__ import annotations

from stcontrast._reading.columns import are_numbers, is_missing, look_alike, names_of, obs_column, obsm_array
from stcontrast._reading.counts import in_memory, not_a_count, on_disk, raw_counts, row_blocks
from stcontrast._reading.elements import (
    Placement,
    SlideImage,
    affine_matrix,
    check_square_pixels,
    image_from_array,
    image_of_element,
    images_over,
    rgb_size,
    shape_centers,
)
from stcontrast._reading.gene_names import (
    check_named_genes,
    check_unique_genes,
    close_genes,
    shared_genes,
    why_few_genes,
)
from stcontrast._reading.gene_sets import named_gene_sets
from stcontrast._reading.outlines import circle, slide_outlines
from stcontrast._reading.resolve import (
    Keys,
    as_list,
    resolve_all,
    resolve_slides,
    resolve_table,
    slide_names,
    slide_of_row,
    split_gene_side,
)
from stcontrast._reading.scale import find_lattice, middle_spots, positive_number, scale_from_spots, spot_distance
from stcontrast._reading.sections import Sections, Slide, table_region_keys
from stcontrast._reading.slide_images import require_images
from stcontrast._reading.wsi import (
    add_tile_table,
    open_slide,
    slide_element,
    slide_image,
    slide_name,
    slide_um_per_px,
    tiles_alone,
)

__all__ = [
    "Keys",
    "Placement",
    "Sections",
    "Slide",
    "SlideImage",
    "add_tile_table",
    "affine_matrix",
    "are_numbers",
    "as_list",
    "check_named_genes",
    "check_square_pixels",
    "check_unique_genes",
    "circle",
    "close_genes",
    "find_lattice",
    "image_from_array",
    "image_of_element",
    "images_over",
    "in_memory",
    "is_missing",
    "look_alike",
    "middle_spots",
    "named_gene_sets",
    "names_of",
    "not_a_count",
    "obs_column",
    "obsm_array",
    "on_disk",
    "open_slide",
    "positive_number",
    "raw_counts",
    "require_images",
    "resolve_all",
    "resolve_slides",
    "resolve_table",
    "rgb_size",
    "row_blocks",
    "scale_from_spots",
    "shape_centers",
    "shared_genes",
    "slide_element",
    "slide_image",
    "slide_name",
    "slide_names",
    "slide_of_row",
    "slide_outlines",
    "slide_um_per_px",
    "split_gene_side",
    "spot_distance",
    "table_region_keys",
    "tiles_alone",
    "why_few_genes",
]
