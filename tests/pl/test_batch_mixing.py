from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stcontrast as stc
from stcontrast.pl import _batch_mixing

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure


def mixing(data: Any, **kwargs: Any) -> Any:
    return stc.pl.batch_mixing(data, **{"show": False, **kwargs})


def spots(n: int = 60, donors: str = "abc") -> AnnData:
    rng = np.random.default_rng(0)
    donor = np.resize(list(donors), n)
    obs = pd.DataFrame(
        {"donor": donor, "kind": np.resize(["x", "x", "y", "y"], n), "library_id": donor},
        index=[f"s{i}" for i in range(n)],
    )
    adata = AnnData(obs=obs)
    adata.obsm["X_image"] = rng.normal(size=(n, 6)).astype(np.float32)
    adata.obsm["X_image"][:, 0] += 50 * (donor == "a")
    adata.obsm["X_stc_image"] = rng.normal(size=(n, 3)).astype(np.float32)
    adata.obsm["X_stc_gene"] = adata.obsm["X_stc_image"].copy()
    adata.obsm["X_stc_gene"][:5] = np.nan
    return adata


def dots(ax: Any) -> dict[str, Any]:
    return {c.get_label(): c.get_offsets() for c in ax.collections}


def test_numbers_are_those_of_the_metric():
    adata = spots()
    axes = mixing(adata, batch_key="donor", label_key="kind", n_neighbors=10)
    assert axes.shape == (2,)
    slots = ["X_image", "X_stc_gene", "X_stc_image"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        "image features", "joint embedding, genes", "joint embedding, image",
    ]  # fmt: skip
    for i, slot in enumerate(slots):
        donor, kind = adata.obs["donor"].to_numpy(), adata.obs["kind"].to_numpy()
        table = stc.metrics.batch_mixing(adata.obsm[slot], donor, label=kind, n_neighbors=10)
        for ax, column in zip(axes, ["same_batch_fraction", "label_agreement"], strict=True):
            for batch in "abc":
                assert dots(ax)[batch][i][0] == pytest.approx(table.loc[batch, column])
    assert dots(axes[0])["expected by chance"][0][0] == pytest.approx(19 / 59)
    assert dots(axes[0])["a"][0][0] > 0.99


@pytest.mark.parametrize(("n", "expected"), [(60, 10), (1200, 90)], ids=["few spots", "many spots"])
def test_neighbours_by_default(n: int, expected: int):
    adata = spots(n)
    (ax,) = mixing(adata, keys="X_image", batch_key="donor")
    table = stc.metrics.batch_mixing(adata.obsm["X_image"], adata.obs["donor"].to_numpy(), n_neighbors=expected)
    assert dots(ax)["b"][0][0] == pytest.approx(table.loc["b", "same_batch_fraction"])


def test_slides_by_default_and_slots_of_the_user():
    (ax,) = mixing(spots(), keys=["X_stc_image", "X_image"])
    assert ax.get_title(loc="left") == "Mixing of slides"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["joint embedding, image", "image features"]
    adata = spots()
    adata.obsm["X_pca"] = adata.obsm["X_image"]
    (ax,) = mixing(adata, keys="X_pca")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["X_pca"]


def test_several_objects_and_slots_that_all_have():
    one, other = spots(), spots()
    other.obs["donor"] = other.obs["donor"].str.upper()
    del other.obsm["X_stc_gene"]
    (ax,) = mixing([one, other], batch_key="donor")
    assert len(ax.get_yticklabels()) == 2
    assert set("abcABC") <= set(dots(ax))


def test_of_many_spots_some_are_drawn(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    metric = stc.metrics.batch_mixing

    def counted(points: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(points))
        return metric(points, *args, **kwargs)

    monkeypatch.setattr(_batch_mixing, "mixing_of", counted)
    monkeypatch.setattr(_batch_mixing, "MAX_SPOTS", 40)
    one, again = (mixing(spots(), keys="X_stc_image")[0] for _ in range(2))
    assert seen == [40, 40]
    np.testing.assert_array_equal(dots(one)["a"], dots(again)["a"])


def test_missing_batches_and_labels():
    adata = spots()
    adata.obs["donor"] = pd.Categorical([None, *adata.obs["donor"][1:]])
    adata.obs["kind"] = pd.Categorical([None] * 30 + list(adata.obs["kind"][30:]))
    axes = mixing(adata, batch_key="donor", label_key="kind")
    assert set(dots(axes[0])) >= {"a", "b", "c"}


def test_a_legend_of_many_batches_is_short():
    (ax,) = mixing(spots(120, "abcdefghijkl"), batch_key="donor")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["12 donors", "expected by chance"]


def test_axes_of_the_user():
    figure, axes = plt.subplots(1, 2)
    assert mixing(spots(), batch_key="donor", ax=axes[0], return_fig=True) is figure
    with pytest.raises(ValueError, match=r"`ax` must hold 2 axes.*found 1"):
        mixing(spots(), batch_key="donor", label_key="kind", ax=axes[0])


@pytest.mark.parametrize(
    ("change", "arguments", "kind", "message"),
    [
        ({}, {"keys": "X_pca"}, KeyError, r"no slots \['X_pca'\] in `obsm`; its slots are \['X_image'"),
        ({}, {"batch_key": "mouse"}, KeyError, "`batch_key`: no column 'mouse'.*'donor'"),
        ({}, {"label_key": "mouse"}, KeyError, "`label_key`: no column 'mouse'"),
        ({"donor": "a"}, {"batch_key": "donor"}, ValueError, "two batches or more"),
        ({}, {"n_neighbors": 0}, ValueError, "`n_neighbors` must be a whole number of at least 1"),
    ],
    ids=["slot", "batch", "label", "one donor", "neighbours"],
)
def test_errors(change: dict[str, Any], arguments: dict[str, Any], kind: type[Exception], message: str):
    adata = spots()
    adata.obs = adata.obs.assign(**change)
    with pytest.raises(kind, match=message):
        mixing(adata, **arguments)
    assert not plt.get_fignums()


def test_without_embeddings_or_of_two_widths():
    with pytest.raises(KeyError, match="No image features and no embedding"):
        mixing(AnnData(obs=pd.DataFrame(index=["a", "b"])))
    other = spots()
    other.obsm["X_image"] = other.obsm["X_image"][:, :3]
    with pytest.raises(ValueError, match=r"different widths, \[3, 6\]"):
        mixing([spots(), other], keys="X_image", batch_key="donor")


def test_baseline_image(difference: Callable[[Figure, str], object]):
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = mixing(spots(), batch_key="donor", label_key="kind", n_neighbors=10, return_fig=True)
        assert difference(figure, "batch_mixing") is None
