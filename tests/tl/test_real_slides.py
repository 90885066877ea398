"""The main job on real slides. Numbers are near those of benchmarks/accuracy.py, with room for other machines' arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import f1_score
from spatialdata import SpatialData

import stcontrast as stc
from stcontrast._data import choose_genes, log_normalize
from stcontrast.metrics import gene_correlation
from tests.real_data import require
from tests.slides import olfactory_bulb, stutility

pytestmark = pytest.mark.slow


def mean_r(model, train, test):
    """Mean r over the 300 most variable well-expressed genes of the training slides, within each test slide."""
    shared = [g for g in train[0]["table"].var_names if all(g in s["table"].var_names for s in [*train, *test])]
    tables = [sdata["table"][:, shared] for sdata in train]
    counts = pd.concat([table.to_df() for table in tables])
    total = np.concatenate([np.asarray(sdata["table"].X.sum(axis=1)).ravel() for sdata in train])
    slide = np.repeat(np.arange(len(train)), [table.n_obs for table in tables])
    matrix = AnnData(counts.to_numpy()).X
    from scipy.sparse import csr_matrix

    chosen = [shared[i] for i in choose_genes(csr_matrix(matrix), total, slide, n_genes=300)]
    scores = []
    for sdata in test:
        stc.tl.predict_expression(sdata, model)
        table = sdata["table"]
        observed = log_normalize(table[:, chosen].X.tocsr(), np.asarray(table.X.sum(axis=1)).ravel())
        scores.append(np.nanmean(gene_correlation(sdata["stc_pred"][:, chosen].X, observed)))
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def bulb():
    folder = require("olfactory_bulb")
    slides = {i: olfactory_bulb(folder, i) for i in range(1, 10)}
    for sdata in slides.values():
        stc.pp.image_features(sdata)
    return slides


def test_olfactory_bulb_expression_is_not_below_ridge(bulb):
    train, test = [bulb[1]], [bulb[2]]
    r = {
        m: mean_r(stc.tl.fit(train, batch_key="mouse", method=m), train, test) for m in ("stcontrast", "ridge", "mean")
    }
    assert r["mean"] == 0
    assert r["ridge"] > 0.45
    assert r["stcontrast"] > r["ridge"]


def test_another_mouse_is_not_below_ridge():
    folder = require("stutility")
    train = [stutility(folder, s) for s in ("MOB1", "MOB2")]
    test = [stutility(folder, s) for s in ("MOB3", "MOB4")]
    r = {m: mean_r(stc.tl.fit(train, batch_key="individual", method=m), train, test) for m in ("stcontrast", "ridge")}
    assert r["ridge"] > 0.34
    assert r["stcontrast"] > r["ridge"]


@pytest.fixture(scope="module")
def arrays():
    folder = require("stutility")
    slides = {name: stutility(folder, name) for name in ("MOB1", "MOB2", "MOB3")}
    for sdata in slides.values():
        stc.pp.image_features(sdata)
    return slides


@pytest.mark.parametrize(
    ("method", "options", "least"),
    [
        ("bleep", {"max_epochs": 40}, 0.3),
        ("tpirbae", {}, 0.3),
        ("mclstexp", {"max_epochs": 20, "learning_rate": 5e-4}, 0.25),
        ("nh2st", {"max_epochs": 8, "n_embedding": 128}, 0.25),
        ("knn", {}, 0.3),
        ("mlp", {}, 0.3),
        ("depth", {}, 0.3),
    ],
)
def test_published_methods_and_baselines_on_another_mouse(arrays, method, options, least):
    train = [arrays["MOB1"], arrays["MOB2"]]
    model = stc.tl.fit(train, batch_key="section", donor_key="individual", method=method, options=options, n_genes=300)
    assert model.spec["held_out_unit"] == "slide"
    assert mean_r(model, train, [arrays["MOB3"]]) > least


def test_layers_of_mice_never_seen_from_slides_with_counts_labels_or_both(bulb):
    train, test = [bulb[i] for i in (1, 2, 3, 4, 5)], [bulb[i] for i in (6, 7, 8, 9)]
    model = stc.tl.fit(train, batch_key="mouse", label_key="layer")
    stc.tl.classify(test, model, donor_key="mouse")
    obs = pd.concat([sdata["table"].obs for sdata in test])
    obs = obs[obs["layer"].notna()]
    assert f1_score(obs["layer"].astype(str), obs["stc_class"].astype(str), average="macro") > 0.72
    assert set(test[0]["table"].uns["stcontrast"]["classification"]["provenance"].values()) == {"out-of-donor"}


LOADED = """
import sys
import numpy as np
import spatialdata
import stcontrast as stc
stc.settings.progress = False
model, store, out = sys.argv[1:]
sdata = spatialdata.read_zarr(store)
stc.tl.predict_expression(sdata, stc.models.load(model))
np.save(out, sdata["stc_pred"].X)
"""


def test_a_loaded_model_predicts_the_same_in_a_fresh_process_on_a_slide_with_h_and_e_only(bulb, tmp_path):
    model = stc.tl.fit([bulb[1]], batch_key="mouse")
    model.save(tmp_path / "model")
    measured = bulb[2]
    bare = AnnData(obs=measured["table"].obs.copy())
    bare.uns = {key: measured["table"].uns[key] for key in ("spatialdata_attrs", "stcontrast")}
    scanned = SpatialData(images=dict(measured.images), shapes=dict(measured.shapes), tables={"table": bare})
    scanned.write(tmp_path / "scan.zarr")
    stc.tl.predict_expression(scanned, model)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        LOADED,
        *(str(tmp_path / n) for n in ("model", "scan.zarr", "p.npy")),
    ]
    subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert np.abs(np.load(tmp_path / "p.npy") - scanned["stc_pred"].X).max() < 1e-5
