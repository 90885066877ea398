from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.figure import Figure

    from stcontrast.models import Predictor


def history(model: Any, **kwargs: Any) -> Any:
    return stc.pl.history(model, **{"show": False, **kwargs})


@pytest.fixture(scope="module")
def model() -> Predictor:
    """With a gene VAE and a contrastive network, trained for as long as it takes to log it."""
    sdata = stc.datasets.toy(n_donors=2, n_spots=25, n_genes=20)
    stc.pp.image_features(sdata, encoder="color", field_um=100)
    options = {"gene_space": "vae", "vae_epochs": 3, "max_epochs": 4, "n_coordinates": 3}
    return stc.tl.fit(sdata, batch_key="donor", options=options)


def test_a_panel_for_every_loss(model: Predictor):
    assert list(model.history) == ["gene VAE", "contrastive network"]
    axes = history(model)
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == [
        "gene VAE\nnegative ELBO", "gene VAE\nreconstruction loss", "gene VAE\nKullback-Leibler divergence",
        "contrastive network\nsquared error", "contrastive network\ncontrastive loss",
    ]  # fmt: skip
    table = model.history["contrastive network"]
    lines = {line.get_label(): line for line in axes[4].lines}
    np.testing.assert_array_equal(lines["training spots"].get_ydata(), table["contrastive"])
    np.testing.assert_array_equal(lines["training spots"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["a guess"].get_ydata(), table["chance"])
    assert len(axes[3].lines) == 1


def test_a_saved_model_keeps_it(model: Predictor, tmp_path: Path):
    model.save(tmp_path / "m")
    again = stc.models.load(tmp_path / "m")
    assert list(again.history) == list(model.history)
    for name, table in model.history.items():
        pd.testing.assert_frame_equal(again.history[name], table, check_dtype=False)
    assert len(history(again)) == 5
    older = {key: value for key, value in model.state().items() if key != "history"}
    again.restore(older)
    assert again.history == {}


def test_held_out_losses_share_a_panel():
    class Network:
        history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "held_out_loss": [2.5, 2.0]})

    (ax,) = history(Network())
    assert [line.get_label() for line in ax.lines] == ["training spots", "held-out spots"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training spots", "held-out spots"]


def test_a_network_of_its_own():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(30, 4)).astype(np.float32)
    network = stc.models.ContrastiveModel(n_image=4, n_gene=2, max_epochs=2)
    with pytest.raises(ValueError, match="has not been trained"):
        history(network)
    network.train(image, image[:, :2])
    assert [ax.get_title(loc="left") for ax in history(network)] == ["squared error", "contrastive loss"]


def test_losses_titles_and_axes(model: Predictor):
    figure, axes = plt.subplots(1, 2)
    found = history(model, losses=["contrastive", "elbo"], title=["a", "b"], ax=axes, return_fig=True)
    assert found is figure
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b"]
    assert len(axes[0].lines) == 2
    with pytest.raises(ValueError, match=r"`ax` must hold 5 axes.*found 2"):
        history(model, ax=axes)
    with pytest.raises(KeyError, match=r"has no \['mse'\]; it has \['elbo'"):
        history(model, losses="mse")


@pytest.mark.parametrize("method", ["ridge", "mean"])
def test_methods_without_epochs(method: str):
    sdata = stc.datasets.toy(n_donors=2, n_spots=25, n_genes=20)
    model = stc.tl.fit(sdata, batch_key="donor", method=method)
    with pytest.raises(ValueError, match=f"method '{method}' is not trained in epochs"):
        history(model)


def test_methods_of_others_keep_it_too():
    sdata = stc.datasets.toy(n_donors=2, n_spots=25, n_genes=20)
    stc.pp.image_features(sdata, encoder="color", field_um=100)
    model = stc.tl.fit(sdata, batch_key="donor", method="triplex", options={"max_epochs": 2})
    assert [len(table) for table in model.history.values()] == [2]


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"`model` must be what `stc\.tl\.fit` returned"):
        history("model_dir")


@pytest.mark.parametrize("page", ["white", "black"])
def test_text_is_visible_on_any_page(model: Predictor, page: str):
    with mpl.rc_context({"figure.facecolor": page}):
        axes = history(model)
    expected = "black" if page == "white" else "white"
    for ax in axes:
        assert {text.get_color() for text in (ax._left_title, ax.xaxis.label, *ax.get_yticklabels())} == {expected}


def test_baseline_image(difference: Callable[[Figure, str], object]):
    class Network:
        history = pd.DataFrame({"epoch": range(1, 21), "squared_error": np.geomspace(2, 1, 20)}).assign(
            contrastive=np.geomspace(4, 2, 20), chance=3.5
        )

    with mpl.rc_context(mpl.rcParamsDefault):
        assert difference(history(Network(), return_fig=True), "history") is None
