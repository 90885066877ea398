from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from stcontrast._files import read_state, write_state
from stcontrast._genespace import PrincipalSpace, VaeSpace
from stcontrast.methods.stcontrast import _image_to_gene
from stcontrast.methods.stcontrast._image_to_gene import MEMBERS, ImageToGene
from stcontrast.models import ContrastiveModel
from tests.methods.synthetic import training_data, with_gene_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.methods import Spots


def made(**given: Any) -> ImageToGene:
    options: dict[str, Any] = {
        "gene_space": "axes", "n_coordinates": 3, "vae_epochs": 2, "penalty": 50.0, "seed": 0, "max_epochs": 4,
    }  # fmt: skip
    return ImageToGene(**options | given)


def partly_measured() -> Spots:
    data = training_data(n_spots=60)
    measured = np.arange(len(data)) % 5 > 0
    return replace(data, depth=data.depth * measured, target=np.where(measured[:, None], data.target, np.float32(777)))


@pytest.fixture(scope="module")
def data() -> Spots:
    return partly_measured()


@pytest.fixture(scope="module")
def new() -> Spots:
    return training_data(n_spots=60, seed=1)


@pytest.fixture(scope="module")
def fitted(data):
    part = made()
    part.fit(data)
    return part


def unit(rows: NDArray) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def scaled(data: Spots, other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Standardised by the spots with counts, every spot of the same length."""
    return unit(StandardScaler().fit(data.design[data.measured]).transform(other)) * np.sqrt(other.shape[1])


def measured_coordinates(data: Spots) -> NDArray[np.float32]:
    return PrincipalSpace(n_coordinates=3).fit(data.with_counts()).encode(data)


def of_slides(values: NDArray, slide: NDArray) -> NDArray[np.float64]:
    return np.stack([values[slide == code].mean(axis=0) for code in range(3)])


def test_ridge_regression_in_closed_form(fitted, data, new):
    """Of coordinates that are centred within the slide, the penalty on standardised features."""
    train = scaled(data, data.design[data.measured])
    scaler = StandardScaler().fit(train)
    ridge = Ridge(alpha=50.0).fit(scaler.transform(train), measured_coordinates(data))
    expected = ridge.predict(scaler.transform(scaled(data, new.design)))
    np.testing.assert_allclose(fitted.predict(new.unseen())["linear"], expected, atol=1e-3)


def test_the_contrastive_model_learns_standardised_coordinates(fitted, data, new):
    coordinates = measured_coordinates(data)
    alone = ContrastiveModel(6, 3, seed=0, max_epochs=4)
    image = scaled(data, data.design[data.measured]).astype(np.float32)
    deviation = coordinates.std(axis=0)
    alone.train(image, coordinates / deviation, slide=data.slide[data.measured])
    expected = alone.predict_gene(scaled(data, new.design).astype(np.float32)) * deviation
    np.testing.assert_allclose(fitted.predict(new.unseen())["contrast"], expected, atol=1e-2)


def nearest(query: NDArray, bank: NDArray, k: int) -> list[tuple[list[int], list[float]]]:
    """Rows of the bank by cosine, most similar first, in a plain loop."""
    found = []
    for row in unit(query):
        ranked = sorted((-float(row @ other), j) for j, other in enumerate(unit(bank)))[:k]
        found.append(([j for _, j in ranked], [-cosine for cosine, _ in ranked]))
    return found


def test_retrieval_in_the_joint_embedding_is_a_mean_of_neighbours(fitted, data, new):
    coordinates = measured_coordinates(data)
    train = scaled(data, data.design[data.measured]).astype(np.float32)
    query = scaled(data, new.design[:20]).astype(np.float32)
    bank, embedded = (fitted.model.embed_image(part) for part in (train, query))
    expected = [coordinates[ids].mean(axis=0) for ids, _ in nearest(embedded, bank, 20)]
    found = fitted.predict(new.take(np.arange(20)).unseen())["joint"]
    # an embedding in the last digit as near may be another neighbour
    assert np.isclose(found, expected, atol=1e-3).all(axis=1).mean() >= 0.9
    ids = fitted.neighbors(new.take(np.arange(20)).unseen())
    np.testing.assert_allclose(ids.weights, 1 / 20)
    np.testing.assert_allclose(coordinates[ids.ids].mean(axis=1), found, atol=1e-4)


def test_retrieval_by_features_weighs_the_nearest_most(fitted, data, new):
    coordinates = measured_coordinates(data)
    train, query = (scaled(data, part) for part in (data.design[data.measured], new.design[:20]))
    # all six principal axes: a rotation, which changes no cosine
    expected = []
    for ids, cosines in nearest(query, train, 100):
        odds = np.exp(np.array(cosines) / 0.05)
        expected.append(odds @ coordinates[ids] / odds.sum())
    found = fitted.predict(new.take(np.arange(20)).unseen())["features"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_neighbour_says_where_on_its_slide_it_stands(fitted, data):
    """Coordinates of the bank have the same mean on every slide."""
    kept = fitted.arrays["coordinates"]
    levels = of_slides(kept, data.slide[data.measured][fitted.arrays["bank"]])
    np.testing.assert_allclose(levels, np.tile(levels.mean(axis=0), (3, 1)), atol=1e-4)


def test_every_member_has_its_coordinates(fitted, new):
    found = fitted.predict(new.unseen())
    assert tuple(found) == MEMBERS
    assert {part.shape for part in found.values()} == {(180, 3)}


def test_decoded_expression_has_the_level_of_slides_with_an_image():
    """The gene side may have another level: it changes the axes, and not what a spot of no deviation is said to have."""
    both = with_gene_side(training_data(donors=4), 3)
    shifted = replace(both, gene_side=replace(both.gene_side, target=both.gene_side.target + 5))
    for spots in (both, shifted):
        part = made(max_epochs=1)
        part.fit(spots)
        nothing = part.decode(np.zeros((1, 3), dtype=np.float32))
        np.testing.assert_allclose(nothing[0], spots.slide_means()[0], atol=1e-4)
        coordinates = part.space.encode(spots)
        expected = part.space.decode(coordinates) - part.space.decode(0 * coordinates) + spots.slide_means()[0]
        np.testing.assert_allclose(part.decode(coordinates), expected, atol=1e-3)


def test_the_gene_side_changes_the_axes_and_nothing_else_is_fitted_on_it():
    both = with_gene_side(training_data(donors=4), 3)
    one, other = made(), made()
    one.fit(both)
    other.fit(replace(both, gene_side=None))
    np.testing.assert_allclose(one.space.axes, PrincipalSpace(n_coordinates=3).fit(both.with_counts()).axes, atol=1e-6)
    assert not np.allclose(one.space.axes, other.space.axes, atol=1e-3)
    np.testing.assert_array_equal(one.scaler.center, other.scaler.center)
    assert len(one.arrays["bank"]) == 90
    np.testing.assert_array_equal(one.level, other.level)


def test_spots_without_counts_are_not_learnt_from(fitted, data, new):
    again = made()
    wild = np.where(data.measured[:, None], data.target, np.float32(-3))
    again.fit(replace(data, target=wild, observed=wild))
    for name, part in again.predict(new.unseen()).items():
        np.testing.assert_array_equal(part, fitted.predict(new.unseen())[name], err_msg=name)


def test_a_large_training_is_retrieved_from_in_part(monkeypatch, data, new):
    monkeypatch.setattr(_image_to_gene, "MAX_BANK", 50)
    part = made(max_epochs=1)
    part.fit(data)
    bank = part.arrays["bank"]
    assert len(set(bank)) == 50
    assert (np.diff(bank) > 0).all()
    assert bank.max() < data.measured.sum()
    assert {part.arrays[name].shape[0] for name in ("coordinates", "image", "gene", "features")} == {50}
    ids = part.neighbors(new.unseen()).ids
    assert set(np.unique(ids)) <= set(bank)
    for values in part.predict(new.unseen()).values():
        assert np.isfinite(values).all()


@pytest.mark.parametrize("gene_space", ["axes", "vae"])
def test_saved_and_read_again(data, new, tmp_path, gene_space):
    part = made(gene_space=gene_space, max_epochs=2)
    part.fit(data)
    assert isinstance(part.space, VaeSpace if gene_space == "vae" else PrincipalSpace)
    write_state(tmp_path, part.state())
    again = made(gene_space=gene_space, max_epochs=2)
    again.restore(read_state(tmp_path))
    found, expected = again.predict(new.unseen()), part.predict(new.unseen())
    for name in MEMBERS:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(again.decode(found[name]), part.decode(expected[name]), atol=1e-5)
    np.testing.assert_array_equal(again.embed_image(new), part.embed_image(new))
    np.testing.assert_allclose(again.embed_genes(new), part.embed_genes(new), atol=1e-5)
    np.testing.assert_array_equal(again.neighbors(new.unseen()).ids, part.neighbors(new.unseen()).ids)


def test_without_counts_there_is_nothing(tmp_path, new):
    write_state(tmp_path, made().state())
    again = made()
    again.restore(read_state(tmp_path))
    for name in ("predict", "embed_image", "embed_genes", "neighbors"):
        with pytest.raises(ValueError, match="without counts"):
            getattr(again, name)(new.unseen())
