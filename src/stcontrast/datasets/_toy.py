"""A synthetic data set with a known truth."""

from __future__ import annotations

from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.special import softmax

from stcontrast._keys import UNS
from stcontrast.datasets._toy_slide import SPOT_RADIUS_UM, SUBTYPES, Layout, Stain, draw_histology, draw_layout

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["toy"]

_MIN_SPOTS: Final = 12
_UNANNOTATED: Final = 0.15
_COMPOSITION: Final = (8.0, 8.0, 5.0, 8.0)
_GENES, _DONOR, _SLIDE = range(3)
_ROLE_CYCLE: Final = (
    *("marker",) * 4, "programme", "gradient", "donor", "housekeeping", "noise",
    *("marker",) * 4, "programme", "noise", "donor", "noise", "noise", "gradient", "noise",
)  # fmt: skip
# with fewer genes some role would have none
_MIN_GENES: Final = 9
_COUNTS_PER_GENE: Final = 8.0
_DONOR_SD: Final = {"donor": 0.8, "housekeeping": 0.05}
_LOG_EXPRESSION: Final = {"housekeeping": 1.8, "noise": -0.8}


def toy(
    n_donors: int = 4,
    *,
    slides_per_donor: int = 1,
    n_spots: int = 200,
    n_genes: int = 200,
    seed: int = 0,
) -> SpatialData:
    """Make Visium-like slides of several donors, with H&E, counts and a known truth.

    Four tissue subtypes (tumour, stroma, fat, glands) are drawn so that they look different, in a stain that differs
    between donors. Genes follow the subtype, the density of nuclei (visible in the image), the
    position from left to right (not visible), the donor, or nothing. A gene's truth depends on `seed` and `n_genes`
    only, and a slide does not change when donors or slides are added.

    Parameters
    ----------
    n_donors
        Number of donors, at least 1; they are called `donor1`, `donor2`, ...
    slides_per_donor
        Number of slides of each donor, 1 to 26; they are called `donor1_a`, `donor1_b`, ...
    n_spots
        Number of spots on tissue of each slide, at least 12: circles of 55 µm on a hexagonal lattice of 100 µm pitch.
    n_genes
        Number of genes, at least 9; they are called `GENE1`, `GENE2`, ... (`GENE1` marks tumour).
    seed
        Random seed, 0 or more.

    Returns
    -------
    For each slide `s` an image `s_he` (uint8 RGB, three scales, 1 µm per pixel) and circles `s`, both in their own
    coordinate system `s`; there is no "global" one. Some slides are translated or scaled in theirs. One table,
    `table`, annotates all circles:

    `X`
        Raw counts, CSR float32, (n_spots of all slides, n_genes).
    `obs`
        `donor`, `slide`, `subtype` (15 % of the spots are not annotated), `region` and `spot_id` (keys of the
        circles), `array_row`, `array_col`; and as truth `subtype_truth`, `cellularity` (density of nuclei, 0 to 1),
        `gradient` (left -1 to right 1).
    `obsm["spatial"]`
        Spot centres, x and y, in pixels of the full-resolution image, whose first pixel covers [0, 1) × [0, 1).
    `var`
        Truth of each gene: `role` (marker, programme, gradient, donor, housekeeping, noise), `marker_of`, `effect`
        (natural log fold change of markers; slope on cellularity scaled to [-1, 1], or on the gradient), `log_mean`,
        `dispersion`.
    `varm["donor_log_shift"]`
        Shift of each gene's log expression in each donor, (n_genes, n_donors).
    `layers["truth"]`
        Share of each gene in the spot's RNA before donor and depth, float32.
    `uns["stcontrast_toy"]`
        `seed`, `donors`, `subtypes`, `donor_depth` (factor on the depth, n_donors).
    `uns["stcontrast"]["um_per_px"]`
        Slide to µm per pixel.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Dyes absorb light by the law of Beer and Lambert; their colours vary around the stain vectors of Ruifrok and Johnston
    (Analytical and Quantitative Cytology and Histology, 2001), those of :func:`skimage.color.rgb2hed`, and of Macenko
    et al. (ISBI 2009).

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=50, n_genes=40)
    >>> sdata["table"].shape
    (100, 40)
    """
    from spatialdata import SpatialData

    _check_range("n_donors", n_donors, low=1)
    _check_range("slides_per_donor", slides_per_donor, low=1, high=len(ascii_lowercase))
    _check_range("n_spots", n_spots, low=_MIN_SPOTS)
    _check_range("n_genes", n_genes, low=_MIN_GENES)
    _check_range("seed", seed, low=0)

    genes = _gene_truth(n_genes, _rng(seed, _GENES))
    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    tables: list[AnnData] = []
    depths: list[float] = []
    shifts: list[NDArray[np.float64]] = []
    donors = [f"donor{i + 1}" for i in range(n_donors)]
    for i, donor in enumerate(donors):
        rng = _rng(seed, _DONOR, i)
        stain = Stain.of_donor(i, rng)
        composition = rng.dirichlet(_COMPOSITION)
        depth, log_shift = _donor_effect(i, genes, rng)
        depths.append(depth)
        shifts.append(log_shift)
        for j in range(slides_per_donor):
            slide = f"{donor}_{ascii_lowercase[j]}"
            rng = _rng(seed, _SLIDE, i, j)
            layout = draw_layout(n_spots, composition=composition, rng=rng)
            picture = draw_histology(layout, stain, rng)
            images[f"{slide}_he"], shapes[slide] = _elements(layout, picture, slide=slide, arrangement=i + j)
            fraction = _expected_fraction(genes, layout)
            counts = _draw_counts(fraction, layout, genes=genes, depth=depth, log_shift=log_shift, rng=rng)
            tables.append(_slide_table(layout, counts, fraction, donor=donor, slide=slide, genes=genes, rng=rng))
    truth = {
        "seed": seed,
        "donors": np.array(donors),
        "subtypes": np.array(SUBTYPES),
        "donor_depth": np.array(depths),
    }
    table = _table(tables, genes)
    table.varm["donor_log_shift"] = np.stack(shifts, axis=1)
    table.uns["stcontrast_toy"] = truth
    return SpatialData(images=images, shapes=shapes, tables={"table": table})


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _check_range(name: str, value: int, *, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        msg = f"`{name}` must be a whole number, got {value!r}."
        raise ValueError(msg)
    if value < low or (high is not None and value > high):
        msg = f"`{name}` must be {f'at least {low}' if high is None else f'between {low} and {high}'}, got {value}."
        raise ValueError(msg)


def _elements(layout: Layout, picture: NDArray[np.uint8], *, slide: str, arrangement: int) -> tuple[Any, Any]:
    """Image and circles of a slide; `arrangement` chooses one of three placements in the coordinate system."""
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale, Sequence, Translation

    image_to_slide, shapes_to_slide, origin = Identity(), Identity(), np.zeros(2)
    if arrangement % 3 == 1:
        origin = np.array([350.0, -120.0])
        image_to_slide = Translation(origin, axes=("x", "y"))
    elif arrangement % 3 == 2:
        image_to_slide = Scale([0.5, 0.5], axes=("x", "y"))
        origin = layout.centres.mean(axis=0)
        back = Translation(origin, axes=("x", "y"))
        shapes_to_slide = Sequence([back, image_to_slide])
        origin = -origin
    image = Image2DModel.parse(
        picture,
        dims=("c", "y", "x"),
        c_coords=("r", "g", "b"),
        scale_factors=[2, 2],
        transformations={slide: image_to_slide},
    )
    circles = ShapesModel.parse(
        layout.centres + origin, geometry=0, radius=SPOT_RADIUS_UM, transformations={slide: shapes_to_slide}
    )
    return image, circles


def _slide_table(
    layout: Layout,
    counts: NDArray[np.float32],
    fraction: NDArray[np.float64],
    *,
    donor: str,
    slide: str,
    genes: pd.DataFrame,
    rng: np.random.Generator,
) -> AnnData:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    subtype = np.array(SUBTYPES, dtype=object)[layout.spot_fraction.argmax(axis=1)]
    annotation = subtype.copy()
    annotation[rng.random(len(subtype)) < _UNANNOTATED] = None
    obs = pd.DataFrame(
        {
            "donor": donor,
            "slide": slide,
            "subtype": annotation,
            "region": slide,
            "spot_id": np.arange(len(subtype)),
            "array_row": layout.array[:, 0],
            "array_col": layout.array[:, 1],
            "subtype_truth": subtype,
            "cellularity": layout.spot_cellularity,
            "gradient": layout.spot_gradient,
        },
        index=[f"{slide}_{k}" for k in range(len(subtype))],
    )
    return AnnData(
        csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame(index=genes.index),
        obsm={"spatial": layout.centres},
        layers={"truth": fraction.astype(np.float32)},
    )


def _table(tables: list[AnnData], genes: pd.DataFrame) -> AnnData:
    from anndata import concat
    from spatialdata.models import TableModel

    table = concat(tables)
    table.var = genes
    for column in ("donor", "slide", "region"):
        values = table.obs[column]
        table.obs[column] = pd.Categorical(values, categories=values.unique())
    for column in ("subtype", "subtype_truth"):
        table.obs[column] = pd.Categorical(table.obs[column], categories=SUBTYPES)
    slides = list(table.obs["slide"].cat.categories)
    table.uns[UNS] = {"um_per_px": dict.fromkeys(slides, 1.0)}
    return TableModel.parse(table, region=slides, region_key="region", instance_key="spot_id")


def _donor_effect(donor: int, genes: pd.DataFrame, rng: np.random.Generator) -> tuple[float, NDArray[np.float64]]:
    """Factor on a donor's depth, spread over a factor of five, and the shift of each gene's log expression."""
    spread = ((donor + 1) * 0.6180) % 1 - 0.5
    sd = genes["role"].astype(str).map(_DONOR_SD).fillna(0.15).to_numpy(dtype=np.float64)
    return float(5**spread), rng.normal(0, sd)


def _gene_truth(n_genes: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row for each gene with its role, the subtype that it marks, its effect, mean and inverse dispersion."""
    role = np.array([_ROLE_CYCLE[i % len(_ROLE_CYCLE)] for i in range(n_genes)])
    is_marker = role == "marker"
    marker_of = np.full(n_genes, None, dtype=object)
    marker_of[is_marker] = np.resize(np.array(SUBTYPES, dtype=object), int(is_marker.sum()))
    sign = rng.choice([-1.0, 1.0], n_genes)
    effect = np.zeros(n_genes)
    effect[is_marker] = rng.uniform(0.9, 2.0, n_genes)[is_marker]
    for name, low, high in (("programme", 0.8, 1.6), ("gradient", 0.4, 0.8)):
        effect[role == name] = (sign * rng.uniform(low, high, n_genes))[role == name]
    base = pd.Series(role).map(_LOG_EXPRESSION).fillna(0.0).to_numpy(dtype=np.float64)
    return pd.DataFrame(
        {
            "role": pd.Categorical(role),
            "marker_of": pd.Categorical(marker_of, categories=SUBTYPES),
            "effect": effect,
            "log_mean": base + rng.normal(0, 0.8, n_genes) * (role != "housekeeping"),
            "dispersion": rng.lognormal(np.log(8), 0.4, n_genes),
        },
        index=[f"GENE{i + 1}" for i in range(n_genes)],
    )


def _expected_fraction(genes: pd.DataFrame, layout: Layout) -> NDArray[np.float64]:
    """Fraction of each gene in the RNA of each spot, before donor and depth; rows sum to 1, (n_spots, n_genes)."""
    effect, role = genes["effect"].to_numpy(), genes["role"].astype(str).to_numpy()
    log_profile = genes["log_mean"].to_numpy() + effect * np.stack(
        [(genes["marker_of"] == subtype).to_numpy() for subtype in SUBTYPES]
    )
    mixture = layout.spot_fraction @ softmax(log_profile, axis=1)
    log_effect = np.multiply.outer(2 * layout.spot_cellularity - 1, effect * (role == "programme"))
    log_effect += np.multiply.outer(layout.spot_gradient, effect * (role == "gradient"))
    fraction = mixture * np.exp(log_effect)
    return fraction / fraction.sum(axis=1, keepdims=True)


def _draw_counts(
    fraction: NDArray[np.float64],
    layout: Layout,
    *,
    genes: pd.DataFrame,
    depth: float,
    log_shift: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw negative-binomial counts, (n_spots, n_genes), float32 whole numbers."""
    seen = fraction * np.exp(log_shift)
    seen /= seen.sum(axis=1, keepdims=True)
    # cells hold RNA: empty fat gives little, crowded tissue gives much.
    cells = (1 - 0.6 * layout.spot_fraction[:, SUBTYPES.index("fat")]) * (0.6 + 0.8 * layout.spot_cellularity)
    size = _COUNTS_PER_GENE * len(genes) * depth * cells * rng.lognormal(0, 0.3, len(cells))
    dispersion = genes["dispersion"].to_numpy()
    rate = rng.gamma(dispersion, seen * size[:, None] / dispersion)
    return rng.poisson(rate).astype(np.float32)
