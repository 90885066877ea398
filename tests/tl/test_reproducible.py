"""The same data and seed give the same model: again, in another process, in any order, saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stcontrast as stc
from tests.methods.quick import QUICK
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, as_anndata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

METHODS = ["ridge", "kernel", "knn", "stcontrast", "bleep", "tpirbae", "triplex"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tables(toy: SpatialData) -> list[AnnData]:
    """A table a slide; the last is predicted."""
    joined = as_anndata(copied(toy))
    return [joined[joined.obs["library_id"] == name].copy() for name in joined.obs["library_id"].cat.categories]


def shuffled(table: AnnData) -> AnnData:
    return table[np.random.default_rng(0).permutation(table.n_obs)].copy()


def fitted(train: Sequence[AnnData], method: str, *, seed: int = 0, n_jobs: int | None = None) -> Any:
    return stc.tl.fit(
        [table.copy() for table in train], batch_key="donor", label_key=LABELS, method=method, seed=seed,
        options=QUICK.get(method), n_jobs=n_jobs,
    )  # fmt: skip


def predicted(model: Any, new: AnnData) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    new = new.copy()
    expression: Any = stc.tl.predict_expression(new, model)
    stc.tl.classify(new, model)
    return np.asarray(expression.X), np.asarray(new.obsm["stc_class_proba"])


def farthest(one: tuple[NDArray[Any], ...], other: tuple[NDArray[Any], ...]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


ORDERS: dict[str, Callable[[list[AnnData]], list[AnnData]]] = {
    "again": list,
    "slides in another order": lambda tables: tables[::-1],
    "spots in another order": lambda tables: [shuffled(table) for table in tables],
    "both": lambda tables: [shuffled(table) for table in tables[::-1]],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_does_not_depend_on_the_order_of_slides_and_spots(tables, method):
    *train, new = tables
    models = {name: fitted(order(train), method) for name, order in ORDERS.items()}
    first = predicted(models["again"], new)
    assert np.isfinite(first[0]).all()
    for name, model in models.items():
        assert farthest(first, predicted(model, new)) < TOLERANCE, name
        assert model.spec["held_out_r"] == pytest.approx(models["again"].spec["held_out_r"], abs=TOLERANCE), name


def test_embeddings_of_training_spots_stay_with_their_spots(tables):
    def embedded(train: list[AnnData]) -> dict[str, NDArray[np.float32]]:
        stc.tl.fit(train, batch_key="donor", label_key=LABELS, options=QUICK["stcontrast"])
        return {
            name: row
            for table in train
            for name, row in zip(
                table.obs_names, np.hstack([table.obsm["X_stc_image"], table.obsm["X_stc_gene"]]), strict=True
            )
        }

    one = embedded([table.copy() for table in tables[:2]])
    other = embedded([shuffled(table) for table in tables[1::-1]])
    assert one.keys() == other.keys()
    for name, row in one.items():
        np.testing.assert_allclose(other[name], row, atol=TOLERANCE)


def test_a_latent_does_not_depend_on_the_order_of_tables_and_spots(tables):
    def latent(train: list[AnnData]) -> dict[str, NDArray[np.float32]]:
        stc.tl.embed_genes(train, batch_key="donor", label_key=LABELS, n_latent=4, max_epochs=2)
        return {
            name: row for table in train for name, row in zip(table.obs_names, table.obsm["X_stc_vae"], strict=True)
        }

    one = latent([table.copy() for table in tables[:2]])
    other = latent([shuffled(table) for table in tables[1::-1]])
    for name, row in one.items():
        np.testing.assert_allclose(other[name], row, atol=TOLERANCE)


def test_count_only_slides_may_come_in_any_order(tables):
    def model_of(gene_side: list[AnnData]) -> Any:
        for table in gene_side:
            del table.obsm["X_image"]
            table.obs["library_id"] = [f"{name}_counts" for name in table.obs["library_id"]]
        return stc.tl.fit([tables[0].copy(), *gene_side], batch_key="donor", options=QUICK["stcontrast"])

    one = model_of([table.copy() for table in tables[1:]])
    other = model_of([shuffled(table) for table in tables[:0:-1]])
    new = tables[-1]
    apart = np.abs(
        np.asarray(stc.tl.predict_expression(new.copy(), one).X) - stc.tl.predict_expression(new.copy(), other).X
    )
    assert apart.max() < TOLERANCE


def test_another_seed_gives_another_network(tables):
    *train, new = tables
    assert farthest(*(predicted(fitted(train, "bleep", seed=seed), new) for seed in (0, 1))) > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A worker stopped while some jobs were given to the executor")
def test_inner_folds_in_two_processes_give_the_same_model(tables):
    *train, new = tables
    for method in ("ridge", "stcontrast", "tpirbae"):
        here, there = fitted(train, method), fitted(train, method, n_jobs=2)
        assert farthest(predicted(here, new), predicted(there, new)) < 1e-4, method
        np.testing.assert_allclose(there.calibration.half_width, here.calibration.half_width, atol=1e-4)


@pytest.mark.slow
def test_a_saved_model_predicts_the_same_in_another_process(tables, tmp_path):
    *train, new = tables
    model = fitted(train, "stcontrast")
    model.save(tmp_path / "model")
    new.write_h5ad(tmp_path / "new.h5ad")
    code = (
        "import sys, anndata, numpy as np, stcontrast as stc\n"
        "table = anndata.read_h5ad(sys.argv[1]); model = stc.models.load(sys.argv[2])\n"
        "found = stc.tl.predict_expression(table, model); stc.tl.classify(table, model)\n"
        "np.savez(sys.argv[3], expression=found.X, proba=table.obsm['stc_class_proba'])\n"
    )
    paths = [str(tmp_path / name) for name in ("new.h5ad", "model", "found.npz")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *paths], check=True)
    with np.load(tmp_path / "found.npz") as found:
        there = (found["expression"], found["proba"])
    assert farthest(predicted(model, new), there) < TOLERANCE
    assert farthest(predicted(model, new), predicted(stc.models.load(tmp_path / "model"), new)) == 0


@pytest.mark.slow
def test_a_fit_is_the_same_in_another_process(tables, tmp_path):
    *train, new = tables
    for i, table in enumerate(tables):
        table.write_h5ad(tmp_path / f"{i}.h5ad")
    code = (
        "import sys, anndata, numpy as np, stcontrast as stc\n"
        "*train, new = [anndata.read_h5ad(path) for path in sys.argv[2:]]\n"
        f"model = stc.tl.fit(train, batch_key='donor', label_key={LABELS!r}, options={QUICK['stcontrast']!r})\n"
        "found = stc.tl.predict_expression(new, model); stc.tl.classify(new, model)\n"
        "np.savez(sys.argv[1], expression=found.X, proba=new.obsm['stc_class_proba'])\n"
    )
    paths = [str(tmp_path / f"{i}.h5ad") for i in range(len(tables))]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "found.npz"), *paths], check=True)
    with np.load(tmp_path / "found.npz") as found:
        assert farthest(predicted(fitted(train, "stcontrast"), new), (found["expression"], found["proba"])) < TOLERANCE
