"""A trained BatchAgnosticVAE as the gene space of the default method."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stcontrast as stc
from stcontrast.models import BatchAgnosticVAE

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

QUICK = {"max_epochs": 2}


def trained(table: AnnData, *, prefix: str = "", columns: slice = slice(None), epochs: int = 2) -> BatchAgnosticVAE:
    """A model of these spots, whose donors are named with a prefix."""
    adata = table[:, columns].copy()
    adata.obs["donor"] = prefix + adata.obs["donor"].astype(str)
    BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    vae = BatchAgnosticVAE(adata, n_latent=4, n_hidden=24, n_layers=2)
    if epochs:
        vae.train(max_epochs=epochs, enable_progress_bar=False)
    return vae


def fit(sdata: SpatialData, gene_space: Any, **kwargs: Any) -> stc.models.Predictor:
    return stc.tl.fit(sdata, batch_key="donor", options={"gene_space": gene_space, **QUICK}, **kwargs)


def predicted(table: AnnData, model: stc.models.Predictor) -> np.ndarray:
    found = stc.tl.predict_expression(table, model, donor_key="donor")
    assert not isinstance(found, list)
    assert found is not None
    return np.asarray(found.X)


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    return stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)


@pytest.fixture(scope="module")
def elsewhere(sdata: SpatialData) -> BatchAgnosticVAE:
    return trained(sdata["table"], prefix="other_", columns=slice(None, None, -1))


def test_its_genes_and_latent_are_those_of_the_model(sdata: SpatialData, elsewhere: BatchAgnosticVAE) -> None:
    model = fit(sdata, elsewhere)
    assert model.genes == list(elsewhere.genes)
    assert model.spec["gene_space_trained_on"] == ["other_donor1", "other_donor2"]
    own = elsewhere.encode_counts(sdata["table"][:, model.genes].X)
    np.testing.assert_allclose(sdata["table"].obsm["X_stc_vae"], own, atol=1e-5)


def test_a_folder_is_the_model_in_it_and_the_fit_can_be_saved(
    sdata: SpatialData, elsewhere: BatchAgnosticVAE, tmp_path: Path
) -> None:
    elsewhere.save(str(tmp_path / "vae"))
    model = fit(sdata, str(tmp_path / "vae"))
    model.save(tmp_path / "model")
    found = [
        predicted(sdata["table"], one) for one in (model, stc.models.load(tmp_path / "model"), fit(sdata, elsewhere))
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_a_model_that_knows_the_held_out_donors_is_named_or_refused(
    sdata: SpatialData, elsewhere: BatchAgnosticVAE, caplog: pytest.LogCaptureFixture
) -> None:
    vae = trained(sdata["table"])
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        fit(sdata, vae)
    assert "trained on donor1, donor2" in caplog.text
    rows = {"given": {"method": "stcontrast", "gene_space": vae, **QUICK}}
    with pytest.raises(ValueError, match=r"trained on donor1, donor2, which would be held out"):
        stc.tl.cross_validate(sdata, donor_key="donor", methods=rows)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="stcontrast"):
        fit(sdata, elsewhere)
    assert "trained on" not in caplog.text


def test_a_comparison_knows_it_by_its_weights(
    sdata: SpatialData, elsewhere: BatchAgnosticVAE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def compared(gene_space: Any) -> stc.tl.CrossValidation:
        rows = {"given": {"method": "stcontrast", "gene_space": gene_space, **QUICK}}
        with caplog.at_level(logging.INFO, logger="stcontrast"):
            return stc.tl.cross_validate(sdata, donor_key="donor", methods=rows, directory=tmp_path / "fits")

    first = compared(elsewhere)
    assert "trained elsewhere" in caplog.text
    elsewhere.save(str(tmp_path / "vae"))
    again = compared(tmp_path / "vae")
    assert "2 of 2 fits are read" in caplog.text
    assert first.summary().equals(again.summary())
    caplog.clear()
    trained(sdata["table"], prefix="new_").save(str(tmp_path / "vae"), overwrite=True)
    compared(tmp_path / "vae")
    assert "fits are read" not in caplog.text


@pytest.mark.parametrize(
    ("gene_space", "error", "match"),
    [
        pytest.param("pca", ValueError, "must be one of 'axes', 'vae', a trained BatchAgnosticVAE", id="unknown word"),
        pytest.param(3, TypeError, "found int", id="a number"),
        pytest.param(None, TypeError, "found NoneType", id="nothing"),
    ],
)
def test_anything_else_is_refused(sdata: SpatialData, gene_space: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fit(sdata, gene_space)


def test_untrained_other_genes_and_other_dimensions_are_refused(
    sdata: SpatialData, elsewhere: BatchAgnosticVAE
) -> None:
    with pytest.raises(ValueError, match="has not been trained"):
        fit(sdata, trained(sdata["table"], epochs=0))
    with pytest.raises(ValueError, match=r"It does not have \['ACTB'\]"):
        fit(sdata, elsewhere, genes=["ACTB"])
    with pytest.raises(ValueError, match="models exactly these"):
        fit(sdata, elsewhere, genes=list(elsewhere.genes[:3]))
    with pytest.raises(ValueError, match="the given model has 4"):
        stc.tl.fit(sdata, batch_key="donor", options={"gene_space": elsewhere, "n_coordinates": 7})
    fewer = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    fewer.tables["table"] = fewer["table"][:, :20].copy()
    with pytest.raises(KeyError, match="absent from the counts"):
        fit(fewer, elsewhere)
