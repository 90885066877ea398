"""Slides with counts and no image: they teach the gene space, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import stcontrast as stc
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, OPTIONS, bare, parts_of

if TYPE_CHECKING:
    from spatialdata import SpatialData


def counts_of(sdata: SpatialData, donor: str, *, slide: str, seed: int | None = None) -> AnnData:
    """The counts of a donor alone, as another section of it; unrelated counts with a seed."""
    table = sdata["table"][(sdata["table"].obs["donor"] == donor).to_numpy()]
    counts = table.X.toarray()
    if seed is not None:
        rng = np.random.default_rng(seed)
        counts = rng.poisson(rng.gamma(0.5, 200, size=(1, counts.shape[1])), size=counts.shape)
    obs = pd.DataFrame({"donor": donor, "library_id": slide}, index=[f"{slide}_{i}" for i in range(table.n_obs)])
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=table.var_names))


@pytest.fixture
def with_images(toy) -> SpatialData:
    return parts_of(copied(toy), "donor1", "donor2")


def test_they_are_named_and_change_the_gene_space(toy, with_images, caplog):
    alone = stc.tl.fit(with_images, batch_key="donor", options=OPTIONS)
    other = counts_of(toy, "donor3", slide="extra")
    before = other.copy()
    model = stc.tl.fit([parts_of(copied(toy), "donor1", "donor2"), other], batch_key="donor", options=OPTIONS)
    assert [record for record in caplog.records if record.levelname == "WARNING" and "['extra']" in record.getMessage()]
    assert model.spec["gene_side"] == ["extra"]
    assert alone.spec["gene_side"] == []
    # donors, slides and genes are those with an image
    for key in ("donors", "slides", "genes"):
        assert model.spec[key] == alone.spec[key]
    axes = [part.method.parts.space.axes for part in (model, alone)]  # type: ignore[attr-defined]
    assert not np.allclose(*axes, atol=1e-3)
    # nothing of the user's is written to
    assert list(other.obs) == list(before.obs)
    assert not other.obsm
    assert not other.uns


def test_a_baseline_leaves_them_out(toy, with_images):
    models = [
        stc.tl.fit([copied(with_images), *more], batch_key="donor", method="ridge")
        for more in ([], [counts_of(toy, "donor3", slide="extra")])
    ]
    assert models[0].spec == models[1].spec
    assert models[1].spec["gene_side"] == []


@pytest.mark.parametrize("gene_space", ["axes", "vae"])
def test_counts_of_a_held_out_donor_are_held_out_with_it(toy, gene_space):
    options = {"max_epochs": 1, "n_coordinates": 3, "gene_space": gene_space, "vae_epochs": 1}
    found = [
        stc.tl.cross_validate(
            [copied(toy), counts_of(toy, "donor1", slide="extra", seed=seed)], donor_key="donor",
            methods={"stcontrast": options},
        ).predictions
        for seed in (1, 2)
    ]  # fmt: skip
    assert found[0] is not None
    assert found[1] is not None
    here = (found[0].obs["donor"] == "donor1").to_numpy()
    np.testing.assert_array_equal(found[0].X[here], found[1].X[here])
    # the other donors are predicted by models that learnt from them
    assert not np.allclose(found[0].X[~here], found[1].X[~here], atol=1e-5)


def test_where_no_object_has_an_image_the_usual_error_comes(toy):
    one, two = (counts_of(toy, donor, slide=donor) for donor in ("donor1", "donor2"))
    with pytest.raises(KeyError, match=r"No `obsm\['spatial'\]`"):
        stc.tl.fit([one, two], batch_key="donor")


def test_a_slide_without_genes_and_without_image_is_an_error(toy, with_images):
    no_image = bare(parts_of(copied(toy), "donor3"))
    del no_image.images["donor3_a_he"]
    with pytest.raises(ValueError, match=r"No image lies under the spots of \['donor3_a'\].*separate objects"):
        stc.tl.fit([with_images, no_image], batch_key="donor", label_key=LABELS)


def test_the_donor_of_every_slide_is_needed(toy, with_images):
    other = counts_of(toy, "donor3", slide="extra")
    del other.obs["donor"]
    with pytest.raises(KeyError, match="no column 'donor'"):
        stc.tl.fit([with_images, other], batch_key="donor")
