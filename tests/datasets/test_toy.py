from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation, get_transformation_between_coordinate_systems

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

ROLES = {"marker", "programme", "gradient", "donor", "housekeeping", "noise"}
SUBTYPES = ["tumour", "stroma", "fat", "glands"]


@pytest.fixture(scope="module")
def sdata() -> sd.SpatialData:
    return stc.datasets.toy(n_donors=3, n_spots=120, n_genes=100)


@pytest.fixture(scope="module")
def table(sdata: sd.SpatialData) -> AnnData:
    return sdata["table"]


def small(**changes: int) -> sd.SpatialData:
    return stc.datasets.toy(**({"n_donors": 1, "n_spots": 24, "n_genes": 20} | changes))


def pixels(sdata: sd.SpatialData, slide: str) -> NDArray[np.uint8]:
    return sdata[f"{slide}_he"]["scale0"]["image"].values


def log_fraction(table: AnnData) -> NDArray[np.float64]:
    counts = table.X.toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def crops(sdata: sd.SpatialData, slide: str, half: int = 50) -> list[NDArray[np.uint8]]:
    table, image = sdata["table"], pixels(sdata, slide)
    centres = table.obsm["spatial"][(table.obs["slide"] == slide).to_numpy()].astype(int)
    return [image[:, y - half : y + half, x - half : x + half] for x, y in centres]


def test_it_has_the_documented_parts(sdata: sd.SpatialData, table: AnnData) -> None:
    slides = ["donor1_a", "donor2_a", "donor3_a"]
    assert set(sdata.images) == {f"{s}_he" for s in slides}
    assert set(sdata.shapes) == set(slides)
    assert set(sdata.coordinate_systems) == set(slides)
    assert get_table_keys(table) == (slides, "region", "spot_id")
    assert table.shape == (360, 100)
    assert table.var_names[0] == "GENE1"
    assert issparse(table.X)
    assert table.X.format == "csr"
    assert table.X.dtype == np.float32
    assert (table.X.data == np.round(table.X.data)).all()
    assert (table.X.data > 0).all()
    assert table.obs["slide"].value_counts().eq(120).all()
    assert table.obs["donor"].cat.categories.tolist() == ["donor1", "donor2", "donor3"]
    assert table.uns["stcontrast"]["um_per_px"] == dict.fromkeys(slides, 1.0)
    for slide in slides:
        image = sdata[f"{slide}_he"]
        assert list(image.children) == ["scale0", "scale1", "scale2"]
        assert image["scale0"]["image"].dtype == np.uint8
        assert image["scale0"]["image"].dims == ("c", "y", "x")
        assert image["scale0"]["image"].coords["c"].values.tolist() == ["r", "g", "b"]


def test_some_spots_are_not_annotated_and_the_others_are_right(table: AnnData) -> None:
    subtype, truth = table.obs["subtype"], table.obs["subtype_truth"]
    assert 0.08 < subtype.isna().mean() < 0.25
    assert truth.cat.categories.tolist() == SUBTYPES
    known = subtype.notna()
    assert (subtype[known].astype(str) == truth[known].astype(str)).all()


def test_every_slide_has_every_subtype() -> None:
    table = stc.datasets.toy(n_donors=2, slides_per_donor=2, n_spots=40, n_genes=9)["table"]
    assert (pd.crosstab(table.obs["slide"], table.obs["subtype_truth"]) > 0).all(axis=None)


def test_circles_and_image_are_aligned(sdata: sd.SpatialData, table: AnnData) -> None:
    kinds = set()
    for slide in sdata.shapes:
        circles, image = sdata[slide], sdata[f"{slide}_he"]
        to_pixels = get_transformation_between_coordinate_systems(sdata, circles, image)
        matrix = to_pixels.to_affine_matrix(("x", "y"), ("x", "y"))
        rows = table.obs["slide"] == slide
        circles = circles.loc[table.obs.loc[rows, "spot_id"]]
        xy = np.stack([circles.geometry.x, circles.geometry.y, np.ones(len(circles))], axis=1)
        np.testing.assert_allclose((xy @ matrix.T)[:, :2], table.obsm["spatial"][rows.to_numpy()], atol=1e-6)
        # 55 µm at 1 µm a pixel
        np.testing.assert_allclose(2 * circles["radius"] * np.sqrt(np.linalg.det(matrix[:2, :2])), 55)
        kinds.add(type(get_transformation(image, slide)).__name__)
    assert kinds == {"Identity", "Translation", "Scale"}


def test_spots_lie_on_a_hexagonal_lattice(table: AnnData) -> None:
    xy = table.obsm["spatial"][:120]
    distance = np.linalg.norm(xy[:, None] - xy, axis=-1) + np.where(np.eye(120), np.inf, 0)
    np.testing.assert_allclose(distance.min(axis=1), 100, atol=1e-6)
    assert (np.isclose(distance, 100).sum(axis=1) == 6).mean() > 0.4
    array = table.obs[["array_row", "array_col"]].to_numpy()[:120]
    assert ((array[:, 0] + array[:, 1]) % 2 == (array[0, 0] + array[0, 1]) % 2).all()
    step = np.linalg.lstsq(np.c_[array, np.ones(120)], xy, rcond=None)[0][:2]
    np.testing.assert_allclose(step, [[0, 50 * np.sqrt(3)], [50, 0]], atol=1e-6)


def test_the_same_seed_gives_the_same_data_and_another_does_not() -> None:
    one, same, other = small(), small(), small(seed=1)
    np.testing.assert_array_equal(one["table"].X.toarray(), same["table"].X.toarray())
    np.testing.assert_array_equal(pixels(one, "donor1_a"), pixels(same, "donor1_a"))
    pd.testing.assert_frame_equal(one["table"].obs, same["table"].obs)
    assert not np.array_equal(one["table"].X.toarray(), other["table"].X.toarray())
    assert not one["table"].var.equals(other["table"].var)


def test_more_donors_and_slides_do_not_change_the_first_ones() -> None:
    few, many = small(), small(n_donors=2, slides_per_donor=2)
    kept = many["table"][many["table"].obs["slide"] == "donor1_a"]
    np.testing.assert_array_equal(few["table"].X.toarray(), kept.X.toarray())
    np.testing.assert_array_equal(few["table"].obsm["spatial"], kept.obsm["spatial"])
    np.testing.assert_array_equal(pixels(few, "donor1_a"), pixels(many, "donor1_a"))
    pd.testing.assert_frame_equal(few["table"].var, many["table"].var)
    slides = [many["table"][many["table"].obs["slide"] == s].X.toarray() for s in ("donor1_a", "donor1_b", "donor2_a")]
    assert not np.array_equal(slides[0], slides[1])
    assert not np.array_equal(slides[0], slides[2])


def test_nine_genes_are_enough_for_every_role() -> None:
    assert set(small(n_genes=9)["table"].var["role"]) == ROLES


def test_markers_mark_their_subtype(table: AnnData) -> None:
    expression, truth = log_fraction(table), table.obs["subtype_truth"]
    for gene, marked in table.var["marker_of"].dropna().items():
        values = expression[:, table.var_names.get_loc(gene)]
        means = {s: values[(truth == s).to_numpy()].mean() for s in SUBTYPES}
        assert max(means, key=means.__getitem__) == marked, gene


@pytest.mark.parametrize(("role", "follows"), [("programme", "cellularity"), ("gradient", "gradient")])
def test_programmes_follow_cellularity_and_gradients_position_within_a_subtype(
    table: AnnData, role: str, follows: str
) -> None:
    expression = log_fraction(table)
    groups = table.obs.groupby(["slide", "subtype_truth"], observed=True).indices.values()

    def within(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = values.copy()
        for rows in groups:
            out[rows] -= out[rows].mean(axis=0)
        return out

    cause, expression = within(table.obs[follows].to_numpy()), within(expression)
    slope = expression.T @ cause / (cause @ cause)
    genes = (table.var["role"] == role).to_numpy()
    assert np.corrcoef(slope[genes], table.var["effect"][genes])[0, 1] > 0.9
    null = np.isin(table.var["role"], ["noise", "housekeeping"])
    assert np.abs(slope[genes]).mean() > 3 * np.abs(slope[null]).mean()


def test_donors_differ_in_depth_and_in_the_genes_that_should(table: AnnData) -> None:
    expression, donor = log_fraction(table), table.obs["donor"]
    depth = pd.Series(np.asarray(table.X.sum(axis=1)).ravel()).groupby(donor.to_numpy(), observed=True).median()
    assert depth.max() / depth.min() > 1.8
    truth = table.uns["stcontrast_toy"]
    assert depth.sort_values().index.tolist() == np.array(truth["donors"])[np.argsort(truth["donor_depth"])].tolist()

    means = np.stack([expression[(donor == d).to_numpy()].mean(axis=0) for d in donor.cat.categories], axis=1)
    shifted = (table.var["role"] == "donor").to_numpy()
    spread = means.std(axis=1)
    assert spread[shifted].mean() > 2.5 * spread[~shifted].mean()
    planted = table.varm["donor_log_shift"]
    assert np.corrcoef((means[:, 0] - means[:, 1])[shifted], (planted[:, 0] - planted[:, 1])[shifted])[0, 1] > 0.9


def test_truth_is_the_expected_fraction(table: AnnData) -> None:
    truth = table.layers["truth"]
    np.testing.assert_allclose(truth.sum(axis=1), 1, rtol=1e-5)
    steady = np.isin(table.var["role"], ["marker", "housekeeping"])
    for d in table.obs["donor"].cat.categories:
        rows = (table.obs["donor"] == d).to_numpy()
        share = table.X[rows].sum(axis=0) / table.X[rows].sum()
        assert np.corrcoef(np.log(truth[rows].mean(axis=0)[steady]), np.log(np.ravel(share)[steady]))[0, 1] > 0.95


def test_tissue_is_darker_than_glass_and_spots_lie_on_tissue(sdata: sd.SpatialData, table: AnnData) -> None:
    for slide in sdata.shapes:
        image = pixels(sdata, slide)
        glass = image[:, :30, :30].reshape(3, -1)
        assert glass.mean() > 225
        assert glass.std(axis=1).max() < 6
        rows = (table.obs["slide"] == slide).to_numpy() & (table.obs["subtype_truth"] != "fat").to_numpy()
        x, y = table.obsm["spatial"][rows].astype(int).T
        assert np.mean(image[1, y, x] < 200) > 0.85
        assert min(x.min(), y.min()) > 50
        assert max(x.max() - image.shape[2], y.max() - image.shape[1]) < -50


def test_crops_show_the_subtype_and_the_density_of_nuclei(sdata: sd.SpatialData, table: AnnData) -> None:
    features, donors, dark = [], table.obs["donor"].to_numpy(), []
    for slide in sdata.shapes:
        pieces = crops(sdata, slide)
        colour = np.array([np.concatenate([p.mean(axis=(1, 2)), p.std(axis=(1, 2))]) for p in pieces])
        features.append((colour - colour.mean(axis=0)) / colour.std(axis=0))
        dark += [float((p[0] < 120).mean()) for p in pieces]
    colour, truth = np.concatenate(features), table.obs["subtype_truth"].to_numpy()
    train = donors != "donor3"
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(colour[train], truth[train])
    right = model.score(colour[~train], truth[~train])
    # Seen, but not given away: colour alone must leave something to learn.
    assert 0.6 < right < 0.98

    for slide in sdata.shapes:
        rows = (table.obs["slide"] == slide).to_numpy() & (truth == "tumour")
        assert np.corrcoef(np.array(dark)[rows], table.obs["cellularity"][rows])[0, 1] > 0.6


def test_stain_differs_between_donors_more_than_between_their_slides() -> None:
    sdata = stc.datasets.toy(n_donors=3, slides_per_donor=2, n_spots=40, n_genes=9)
    obs, hues = sdata["table"].obs, {}
    for slide in sdata.shapes:
        cellular = (obs.loc[obs["slide"] == slide, "subtype_truth"] != "fat").tolist()
        pieces = [p.reshape(3, -1) for p, keep in zip(crops(sdata, slide, 30), cellular, strict=True) if keep]
        absorbed = -np.log(np.concatenate(pieces, axis=1).clip(1) / 240)
        absorbed = absorbed[:, absorbed.sum(axis=0) > 0.4].mean(axis=1)
        hues[slide] = absorbed / absorbed.sum()
    hue = pd.DataFrame(hues).T
    donor = hue.index.str.split("_").str[0]
    assert hue.groupby(donor).mean().var().sum() > 4 * hue.groupby(donor).var().mean().sum()


def test_it_can_be_written_to_zarr_and_read(tmp_path: Path) -> None:
    sdata = small(n_donors=3)
    sdata.write(tmp_path / "toy.zarr")
    back = sd.read_zarr(tmp_path / "toy.zarr")
    one, two = sdata["table"], back["table"]
    np.testing.assert_array_equal(one.X.toarray(), two.X.toarray())
    np.testing.assert_array_equal(one.layers["truth"], two.layers["truth"])
    np.testing.assert_array_equal(one.varm["donor_log_shift"], two.varm["donor_log_shift"])
    pd.testing.assert_frame_equal(one.obs.astype(str), two.obs.astype(str), check_dtype=False)
    pd.testing.assert_frame_equal(one.var.astype(str), two.var.astype(str), check_dtype=False)
    truth = two.uns["stcontrast_toy"]
    assert truth["seed"] == 0
    assert list(truth["donors"]) == ["donor1", "donor2", "donor3"]
    np.testing.assert_array_equal(truth["donor_depth"], one.uns["stcontrast_toy"]["donor_depth"])
    assert two.uns["stcontrast"]["um_per_px"] == {"donor1_a": 1.0, "donor2_a": 1.0, "donor3_a": 1.0}
    for slide in sdata.shapes:
        np.testing.assert_array_equal(pixels(sdata, slide), pixels(back, slide))
        for element in (slide, f"{slide}_he"):
            matrices = [
                get_transformation(s[element], slide).to_affine_matrix(("x", "y"), ("x", "y")) for s in (sdata, back)
            ]
            np.testing.assert_allclose(*matrices)


def bad(name: str, value: Any, message: str) -> Any:
    return pytest.param(name, value, message, id=f"{name}={value}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        bad("n_donors", 0, "`n_donors` must be at least 1, got 0"),
        bad("slides_per_donor", 27, "`slides_per_donor` must be between 1 and 26, got 27"),
        bad("n_spots", 11, "`n_spots` must be at least 12, got 11"),
        bad("n_genes", 8, "`n_genes` must be at least 9, got 8"),
        bad("seed", -1, "`seed` must be at least 0, got -1"),
        bad("n_spots", 50.0, "`n_spots` must be a whole number, got 50.0"),
        bad("n_donors", True, "`n_donors` must be a whole number, got True"),
    ],
)
def test_numbers_out_of_range_are_an_error(name: str, value: Any, message: str) -> None:
    make: Callable[..., sd.SpatialData] = stc.datasets.toy
    with pytest.raises(ValueError, match=message):
        make(**{name: value})
