"""No public function changes the session: random states, threads, filters, loggers, signals, environment, options.

Nor does it change what the user gave, apart from the slots that are named here for each function.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import joblib
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from threadpoolctl import threadpool_info

import stcontrast as stc
from tests.synthetic import refuse
from tests.tl.toy import LABELS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData


def session() -> dict[str, Any]:
    """What belongs to the user's session."""
    # the first question for the backend chooses it
    backend = mpl.get_backend()
    return {
        "backend": backend,
        "random": hash(random.getstate()),
        "numpy": joblib.hash(np.random.get_state()),  # noqa: NPY002
        "torch": joblib.hash(torch.get_rng_state().numpy()),
        "torch threads": torch.get_num_threads(),
        "torch settings": (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision(),
        ),
        **{f"threads of {pool['filepath']}": pool["num_threads"] for pool in threadpool_info()},
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        **{f"rcParams[{name}]": repr(value) for name, value in dict.items(mpl.rcParams)},
        "figures": plt.get_fignums(),
        "levels": {name: logging.getLogger(name).level for name in ("", "stcontrast", "scvi", "lightning.pytorch", "anndata")},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in ("", "stcontrast")},
        "disabled": logging.root.manager.disable,
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "numpy errors": np.geterr(),
        "numpy print": np.get_printoptions(),
        "pandas": (pd.get_option("display.max_rows"), pd.get_option("display.precision"), pd.get_option("compute.use_numexpr")),
        "scvi": (scvi.settings.seed, scvi.settings.batch_size, scvi.settings.verbosity),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "settings": repr(stc.settings),
    }  # fmt: skip


def content(sdata: SpatialData) -> dict[str, str]:
    """Everything that the user gave, by place."""
    table = sdata["table"]
    found: dict[str, Any] = {f"obs[{name}]": table.obs[name] for name in table.obs}
    found |= {f"var[{name}]": table.var[name] for name in table.var}
    found |= {"X": table.X, "names": (table.obs_names, table.var_names), "attrs": dict(sdata.attrs)}
    for slot in ("layers", "obsm", "varm", "obsp", "uns"):
        found |= {f"{slot}[{name}]": value for name, value in getattr(table, slot).items()}
    found |= {f"shapes[{name}]": shapes.to_wkb() for name, shapes in sdata.shapes.items()}
    found |= {f"images[{name}]": image["scale0"].image.data.compute() for name, image in sdata.images.items()}
    found |= {f"tables[{name}]": np.asarray(other.X) for name, other in sdata.tables.items() if name != "table"}
    return {name: joblib.hash(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The toy data, and what one function makes for the next."""
    sdata = stc.datasets.toy(n_donors=3, n_spots=30, n_genes=30)
    return {"sdata": sdata, "folder": tmp_path_factory.mktemp("world")}


def fit(world: dict[str, Any]) -> None:
    options = {**OPTIONS, "gene_space": "vae", "vae_epochs": 1}
    world["model"] = stc.tl.fit(world["sdata"], batch_key="donor", label_key=LABELS, options=options)


def cross_validate(world: dict[str, Any]) -> None:
    methods = ["ridge", "mean", "bleep"]
    world["cv"] = stc.tl.cross_validate(
        world["sdata"], donor_key="donor", label_key=LABELS, methods=methods, n_genes=10, n_jobs=1
    )


def vae(world: dict[str, Any]) -> None:
    adata = world["sdata"]["table"].copy()
    stc.models.BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    model = stc.models.BatchAgnosticVAE(adata, n_latent=4)
    model.train(max_epochs=1)
    model.save(str(world["folder"] / "vae"))
    stc.models.BatchAgnosticVAE.load(str(world["folder"] / "vae"), adata).get_latent_representation()


def similar(world: dict[str, Any]) -> None:
    found = stc.tl.find_similar(world["sdata"], world["model"], spots=[0, 1], k=3)
    stc.pl.similar(found, world["sdata"], world["sdata"], n=2, show=False)
    plt.close("all")


def saved(world: dict[str, Any]) -> None:
    world["model"].save(world["folder"] / "model")
    stc.models.load(world["folder"] / "model")


def store(world: dict[str, Any]) -> None:
    stc.tl.predict_expression(world["sdata"], world["model"], store=world["folder"] / "store.zarr")


def picture(draw: Callable[..., Any], *args: str, **kwargs: Any) -> Callable[[dict[str, Any]], None]:
    def drawn(world: dict[str, Any]) -> None:
        first = world["cv"] if args == ("cv",) else world["sdata"]
        axes = draw(first, *(name for name in args if name != "cv"), show=False, **kwargs)
        plt.close(np.ravel(np.asarray(axes, dtype=object))[0].figure)

    return drawn


def called(function: Callable[..., Any], **kwargs: Any) -> Callable[[dict[str, Any]], None]:
    return lambda world: function(world["sdata"], world["model"], **kwargs)


# in the order of a user's work; what each writes of the user's objects
STEPS: dict[str, tuple[Callable[[dict[str, Any]], Any], set[str]]] = {
    "image_features": (lambda world: stc.pp.image_features(world["sdata"]), {"obsm[X_image]", "uns[stcontrast]"}),
    "tissue_grid": (
        lambda world: stc.pp.tissue_grid(world["sdata"], um_per_px=1.0, table_key="grid", image_key="donor1_a_he"),
        {"tables[grid]", "shapes[donor1_a_he_spots]"},
    ),
    "crops": (lambda world: stc.pp.crops(world["sdata"], field_um=100.0, size_px=16), set()),
    "complete": (lambda world: stc.pp.complete(world["sdata"], max_steps=2), {"layers[stc_completed]", "uns[stcontrast]"}),
    "fit": (fit, {"obsm[X_stc_image]", "obsm[X_stc_gene]", "obsm[X_stc_vae]", "tables[stc_pred]", "uns[stcontrast]"}),
    "save and load": (saved, set()),
    "predict_expression": (
        called(lambda sdata, model: stc.tl.predict_expression(sdata, model)), {"tables[stc_pred]", "uns[stcontrast]"},
    ),
    "predict_expression, store": (store, {"tables[stc_pred]"}),
    "classify": (
        called(lambda sdata, model: stc.tl.classify(sdata, model)),
        {"obs[stc_class]", "obs[stc_class_confidence]", "obsm[stc_class_proba]", "uns[stcontrast]"},
    ),
    "embed": (called(lambda sdata, model: stc.tl.embed(sdata, model)), {"obsm[X_stc_image]", "obsm[X_stc_gene]", "uns[stcontrast]"}),
    "embed_genes": (
        lambda world: stc.tl.embed_genes(world["sdata"], batch_key="donor", max_epochs=1),
        {"obsm[X_stc_vae]", "uns[stcontrast]"},
    ),
    "similar": (similar, set()),
    "VAE": (vae, set()),
    "cross_validate": (cross_validate, set()),
    "pl.spatial_pred": (picture(stc.pl.spatial_pred, "GENE1", panels=["predicted", "width"]), set()),
    "pl.crops": (picture(stc.pl.crops, "GENE1"), set()),
    "pl.spatial_class": (picture(stc.pl.spatial_class), set()),
    "pl.embedding": (picture(stc.pl.embedding), set()),
    "pl.cv_summary": (picture(stc.pl.cv_summary, "cv"), set()),
    "pl.gene_scores": (picture(stc.pl.gene_scores, "cv"), set()),
    "pl.calibration": (picture(stc.pl.calibration, "cv"), set()),
    "pl.confusion": (picture(stc.pl.confusion, "cv"), set()),
}  # fmt: skip


@pytest.mark.slow
def test_the_session_and_the_user_s_data_stay_as_they_are(world, subtests):
    for name, (step, written) in STEPS.items():
        before, given = session(), content(world["sdata"])
        # lazy data are computed in this process, and are not sent to a cluster that may not see the files
        with dask.config.set(scheduler=refuse):
            step(world)
        after, left = session(), content(world["sdata"])
        with subtests.test(name):
            assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}
            assert {key for key in given if left.get(key) != given[key]} <= written
            assert left.keys() - given.keys() <= written
