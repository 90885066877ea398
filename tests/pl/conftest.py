from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.testing.compare import compare_images

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from stcontrast.tl import CrossValidation

mpl.use("Agg")
BASELINE = Path(__file__).parent / "baseline"


@pytest.fixture(scope="session")
def cv() -> CrossValidation:
    """Scores and subtypes of three methods on two donors; tests draw it and change copies only."""
    sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    return stc.tl.cross_validate(sdata, donor_key="donor", label_key="subtype", methods=["knn", "ridge", "mean"])


@pytest.fixture(scope="session")
def predicted_toy() -> SpatialData:
    """Three slides of toy data; the prediction is another table, in another order, of some of the genes."""
    sdata = stc.datasets.toy(n_donors=3, n_spots=30, n_genes=20)
    table = sdata["table"]
    rng = np.random.default_rng(0)
    prediction = table[rng.permutation(table.n_obs), table.var_names[:10]].copy()
    prediction.X = np.log1p(1e4 * prediction.layers["truth"])
    prediction.uns["stcontrast"] = {"prediction": {"unit": "log1p(counts per 10 000)"}}
    sdata["stc_pred"] = prediction
    table.obs["stc_class"] = table.obs["subtype_truth"]
    return sdata


@pytest.fixture
def sdata(predicted_toy: SpatialData) -> SpatialData:
    """Copies of the tables, which a test may change; images and shapes are shared."""
    from spatialdata import SpatialData

    tables = {name: deepcopy(table) for name, table in predicted_toy.tables.items()}
    return SpatialData(images=dict(predicted_toy.images), shapes=dict(predicted_toy.shapes), tables=tables)


@pytest.fixture
def autoshow() -> Iterator[Callable[[bool], None]]:
    """Set scanpy's `autoshow` for the length of a test."""
    import scanpy as sc

    def set_to(value: bool) -> None:
        sc.settings.autoshow = value

    before = sc.settings.autoshow
    yield set_to
    sc.settings.autoshow = before


@pytest.fixture
def difference(tmp_path: Path) -> Callable[[Figure, str], object]:
    """How a figure differs from the baseline image of a name; `None` where it does not."""
    if mpl.__version_info__ < (3, 11):
        pytest.skip("matplotlib draws text in another way before 3.11")

    def compared(figure: Figure, name: str) -> object:
        figure.savefig(tmp_path / "drawn.png", dpi=25, metadata={"Software": None})
        return compare_images(str(BASELINE / f"{name}.png"), str(tmp_path / "drawn.png"), tol=12)

    return compared


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    from matplotlib import pyplot as plt

    plt.close("all")
