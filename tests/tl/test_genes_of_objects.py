"""Objects with different genes: found before any work, and joined tables with zeros in the gaps are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stcontrast as stc
from stcontrast._data import lost_genes
from stcontrast.tl import _fit
from stcontrast.tl.cross_validation import _cross_validate
from tests.tl.test_identity import learn, section

if TYPE_CHECKING:
    from collections.abc import Callable

USES: dict[str, Callable[[Any], object]] = {
    "fit": lambda objects: learn(objects, donor_key="donor"),
    "cross_validate": lambda objects: stc.tl.cross_validate(
        objects, donor_key="donor", methods=["mean"], use_rep="X_own"
    ),
    "embed_genes": lambda objects: stc.tl.embed_genes(objects, n_latent=2, max_epochs=1),
}


@pytest.fixture
def objects() -> list[ad.AnnData]:
    return [section(f"s{i}", seed=i, donor=f"d{i}") for i in range(3)]


def renamed(adata: ad.AnnData, names: list[str]) -> ad.AnnData:
    adata.var_names = pd.Index(names)
    return adata


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # anndata
@pytest.mark.parametrize("use", ["fit", "cross_validate"])
@pytest.mark.parametrize("names", [["0", "1", "2", "3", "4", "0"], list("abcdef")], ids=["not unique", "none shared"])
def test_names_are_checked_before_features(
    objects: list[ad.AnnData], use: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed(objects[1], names)
    for module in (_fit, _cross_validate):
        monkeypatch.setattr(module, "features_to_fit", lambda *_, **__: pytest.fail("features first"))
    with pytest.raises(ValueError, match=r"gene names that are not unique|share 0 genes"):
        USES[use](objects)


@pytest.mark.parametrize("use", USES)
def test_panels_that_share_few_genes_are_said(
    objects: list[ad.AnnData], use: str, caplog: pytest.LogCaptureFixture
) -> None:
    renamed(objects[1], ["0", "1", "x", "y", "z", "u"])
    USES[use](objects)
    assert "The objects share 2 genes, and have 6 (object 1 of 3), 6 (object 2 of 3), 6 (object 3 of 3)" in caplog.text


@pytest.mark.situation(
    "Genes",
    "A gene has no counts on one slide and is well expressed on the others (an outer join filled with zeros)",
    "warning",
    "genes some have no count at all on a slide",
)
@pytest.mark.parametrize("use", USES)
def test_zeros_of_an_outer_join_are_named_by_slide(
    objects: list[ad.AnnData], use: str, caplog: pytest.LogCaptureFixture
) -> None:
    renamed(objects[1], ["0", "1", "2", "x", "y", "z"])
    joined = ad.concat(objects, join="outer", fill_value=0)
    USES[use](joined)
    assert "Of 9 genes some have no count at all on a slide, and are well expressed on other slides" in caplog.text
    assert "slide 's1': 3, e.g. ['3', '4', '5']" in caplog.text
    # the genes that only the second has are absent from both others
    for name in ("s0", "s2"):
        assert f"slide '{name}': 3, e.g." in caplog.text
    assert caplog.text.count("no count at all") == 1
    caplog.clear()
    USES[use](ad.concat(objects, join="inner"))
    assert "no count at all" not in caplog.text


@pytest.mark.parametrize(
    ("mean", "depth", "n_spots", "named"),
    [(3.0, 1.0, 40, True), (0.02, 1.0, 40, False), (3.0, 1.0, 3, False), (3.0, 0.01, 40, False)],
    ids=["well expressed", "rare", "few spots", "shallow slide"],
)
def test_a_gene_may_be_absent_by_chance(mean: float, depth: float, n_spots: int, named: bool) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.poisson(3.0, (200, 5)), rng.poisson(3.0 * depth, (n_spots, 5))
    one[:, 2] = rng.poisson(mean, 200)
    other[:, 2] = 0
    counts = sparse.csr_matrix(np.concatenate([one, other]).astype(np.float32))
    slide = np.repeat([4, 7], [200, n_spots])
    found = lost_genes(counts, np.asarray(counts.sum(axis=1)).ravel().astype(float), slide)
    assert {code: genes.tolist() for code, genes in found.items() if code == 7} == ({7: [2]} if named else {})


def test_a_slide_with_one_count_has_the_gene() -> None:
    """Its depth belongs to the rate of the gene, which is then too low for the absence to be odd."""
    spots = np.array([[200.0, 1.0], *[[900.0, 0.0]] * 9, *[[98.0, 2.0]] * 10, *[[100.0, 0.0]] * 10])
    slide = np.repeat([0, 1, 2], 10)
    # 21 counts in 9 301 of the others: at this rate 2 are expected; without the depth of the first slide it would be 21
    assert lost_genes(sparse.csr_matrix(spots), spots.sum(axis=1), slide) == {}
    spots[0, 1] = 0
    assert lost_genes(sparse.csr_matrix(spots), spots.sum(axis=1), slide)[2].tolist() == [1]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_image_features_says_that_fit_will_refuse(caplog: pytest.LogCaptureFixture) -> None:
    sdata = stc.datasets.toy(n_donors=1, n_spots=12, n_genes=9)
    renamed(sdata["table"], [*"abcdefgh", "a"])
    stc.pp.image_features(sdata, encoder="color", field_um=50)
    assert "`adata.var_names_make_unique()`" in caplog.text
