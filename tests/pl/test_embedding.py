from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import stcontrast as stc
from stcontrast.pl._colors import CLASS_COLORS


@pytest.fixture(autouse=True)
def umap(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two coordinates of the points instead of scanpy's UMAP, which one test runs."""
    import scanpy as sc

    seen: list[Any] = []

    def neighbors(adata: Any, **kwargs: Any) -> None:
        seen.append((adata.obsm["X"], kwargs))

    monkeypatch.setattr(sc.pp, "neighbors", neighbors)
    monkeypatch.setattr(sc.tl, "umap", lambda adata, **_: adata.obsm.update(X_umap=adata.obsm["X"][:, :2]))
    return seen


def embedded(n: int = 12, *, genes: bool = True, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"donor": list("ab") * (n // 2), "age": rng.random(n)}, index=[f"s{i}" for i in range(n)])
    adata = AnnData(obs=obs)
    adata.obsm["X_stc_image"] = rng.random((n, 4), dtype=np.float32)
    if genes:
        adata.obsm["X_stc_gene"] = rng.random((n, 4), dtype=np.float32)
        adata.obsm["X_stc_gene"][0] = np.nan
    return adata


def embedding(*args: Any, **kwargs: Any) -> Any:
    return stc.pl.embedding(*args, **kwargs)


def dots(ax: Any) -> dict[str, Any]:
    return {c.get_label(): c for c in ax.collections}


def legend_of(ax: Any) -> dict[str, str]:
    legend = ax.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    return dict(zip(texts, (to_hex(handle.get_color()) for handle in legend.legend_handles), strict=True))


def test_points_of_both_sides(umap: list[Any]):
    adata = embedded()
    (ax,) = embedding(adata, show=False)
    drawn = dots(ax)
    assert set(drawn) == {"image", "gene"}
    for kind, n in {"image": 12, "gene": 11}.items():
        expected = adata.obsm[f"X_stc_{kind}"][-n:, :2]
        found = drawn[kind].get_offsets()
        np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert legend_of(ax) == dict(zip(["image", "gene"], CLASS_COLORS, strict=False))
    assert len(drawn["image"].get_paths()[0].vertices) != len(drawn["gene"].get_paths()[0].vertices)
    ((points, arguments),) = umap
    assert points.shape == (23, 4)
    assert arguments["metric"] == "cosine"


def test_colors_of_columns_and_numbers():
    one, two = embedded(), embedded(seed=1, genes=False)
    two.obs["donor"] = "c"
    axes = embedding([one, two], color=["donor", "age", "side"], show=False)
    assert axes.shape == (3,)
    colors = legend_of(axes[0])
    assert list(colors) == ["a", "b", "c"]
    for ax in axes:
        assert sum(len(c.get_offsets()) for c in ax.collections) == 35
    drawn = dots(axes[0])["image"]
    face = {to_hex(color) for color in drawn.get_facecolor()}
    assert face == set(colors.values())
    ages = np.concatenate([c.get_array() for c in axes[1].collections])
    np.testing.assert_allclose(np.sort(ages), np.sort([*one.obs["age"], *one.obs["age"][1:], *two.obs["age"]]))
    assert axes[1].get_legend() is None


def test_points_without_a_class_are_grey():
    adata = embedded()
    adata.obs["stc_class"] = pd.Categorical(["fat"] * 6 + [None] * 6)
    axes = embedding(adata, show=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["Image and genes", "Predicted class"]
    assert list(legend_of(axes[1])) == ["fat", "unknown"]


@pytest.mark.slow
def test_the_umap_of_scanpy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    adata = embedded(20)
    slots = set(adata.obsm)
    first, second = (embedding(adata, n_neighbors=5, show=False)[0] for _ in range(2))
    np.testing.assert_array_equal(dots(first)["image"].get_offsets(), dots(second)["image"].get_offsets())
    assert set(adata.obsm) == slots


@pytest.mark.parametrize("n_axes", [1, 2])
def test_axes_of_the_user(n_axes: int):
    figure, axes = plt.subplots(1, n_axes)
    color = ["side", "donor"][:n_axes]
    returned = embedding(embedded(), color=color, ax=axes)
    assert list(returned) == list(np.ravel(axes))
    assert embedding(embedded(), color=color, ax=axes, return_fig=True) is figure
    assert isinstance(embedding(embedded(), return_fig=True), Figure)


def test_errors():
    adata = embedded()
    with pytest.raises(KeyError, match=r"No joint embedding in `obsm\['X_other_image'\]`.*X_stc_image.*stc.tl.embed"):
        embedding(adata, key="X_other", show=False)
    with pytest.raises(KeyError, match=r"`color`: no column 'layer'.*'donor'"):
        embedding(adata, color="layer", show=False)
    with pytest.raises(ValueError, match="at least 5 points with an embedding, found 3"):
        embedding(embedded(2), show=False)
    other = embedded()
    other.obsm["X_stc_image"] = other.obsm["X_stc_image"][:, :2]
    with pytest.raises(ValueError, match=r"different widths, \[2, 4\]"):
        embedding([adata, other], show=False)
    assert not plt.get_fignums()
