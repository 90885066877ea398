"""Tissue layers from few labels: what slides with counts and no labels add to the recognition of tissue in H&E.

    python benchmarks/recognition.py --slides OUT/slides [--draws 10] [--rows NAME ...] [--leave-one-out]

OUT/slides is what ``benchmarks/accuracy.py --data FOLDER --out OUT`` leaves. Olfactory bulb: counts of two sections of
mouse A, whose labels are taken away; labels of the other mice B, C and D, so many spots a class; a third of these mice is
tested, the other two have the labels. Prints macro-F1, the mean over the three mice and over the draws, and its standard
deviation over draws. ``--leave-one-out`` prints macro-F1 of every mouse A-D with all labels of the others instead.
Every score is kept in ``OUT/recognition.csv`` and not computed again: a run that was broken off goes on there. Remove the
file after a change of the method.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MICE = {
    **{f"Rep{i:02d}": "A" for i in (1, 2, 3, 4)}, "Rep05": "B", "Rep06": "C", "Rep07": "C", "Rep08": "D", "Rep09": "D",
}  # fmt: skip
LABEL = "layer"
# row: method and its options; "logistic" is scikit-learn's on the same features with neighbours
ROWS = {
    "logistic": None,
    "ridge": {"method": "ridge"},
    "stcontrast": {},
    "stcontrast, no contrast": {"options": {"contrastive_weight": 0.0}},
    "stcontrast, InfoNCE": {"options": {"loss": "info_nce"}},
    "stcontrast, BLEEP's loss": {"options": {"loss": "similarity_target"}},
    "stcontrast, sigmoid loss": {"options": {"loss": "sigmoid"}},
    "stcontrast, VAE": {"options": {"gene_space": "vae"}},
    "stcontrast, no counts": {"counts": False},
}
SHOTS = (3, 10, 30, None)


def with_labels(tables, n, rng):
    """Copies of tables with n labels a class, drawn over all of them; with all, if n is None."""
    tables = [table.copy() for table in tables]
    labels = pd.concat([pd.Series(table.obs[LABEL].to_numpy(dtype=object)) for table in tables], ignore_index=True)
    if n is not None:
        kept = [rng.permutation(np.flatnonzero(labels == name))[:n] for name in sorted(labels.dropna().unique())]
        left = np.zeros(len(labels), dtype=bool)
        left[np.concatenate(kept)] = True
        labels[~left] = None
    start = 0
    for table in tables:
        table.obs[LABEL] = labels.iloc[start : start + table.n_obs].to_numpy(dtype=object)
        start += table.n_obs
    return tables


def logistic(train, test):
    """Logistic regression (C = 0.1) on the design that all methods see."""
    from stcontrast._data import build_design

    def seen(table):
        xy = np.asarray(table.obsm["spatial"], dtype=float)
        return build_design(np.asarray(table.obsm["X_image"]), np.zeros(table.n_obs, dtype=np.int64), xy)

    x = np.concatenate([seen(table) for table in train])
    y = np.concatenate([table.obs[LABEL].to_numpy(dtype=object) for table in train])
    known = pd.notna(y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(
        x[known], y[known].astype(str)
    )
    return [model.predict(seen(table)) for table in test]


def score(row, train, test):
    """Macro-F1 on all annotated spots of the tested slides."""
    import stcontrast as stc

    if row is None:
        guesses = logistic([table for table in train if table.obs[LABEL].notna().any()], test)
    else:
        options = {name: value for name, value in row.items() if name != "counts"}
        if not row.get("counts", True):
            train = [table[:, []].copy() for table in train]
        model = stc.tl.fit([table.copy() for table in train], batch_key="donor", label_key=LABEL, **options)
        test = [table.copy() for table in test]
        stc.tl.classify(test, model)
        guesses = [table.obs["stc_class"].astype(str).to_numpy() for table in test]
    truth = np.concatenate([table.obs[LABEL].to_numpy(dtype=object) for table in test])
    known = pd.notna(truth)
    return f1_score(truth[known].astype(str), np.concatenate(guesses)[known], average="macro")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--leave-one-out", action="store_true")
    arguments = parser.parse_args()
    import stcontrast as stc

    stc.settings.progress = False
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    tables = {name: ad.read_h5ad(arguments.slides / f"{name}.h5ad") for name in MICE}
    for name, table in tables.items():
        table.obs["donor"] = MICE[name]
    of_mouse = {mouse: [tables[name] for name in MICE if MICE[name] == mouse] for mouse in "ABCD"}
    kept = arguments.slides.parent / "recognition.csv"
    if arguments.leave_one_out:
        found = []
        for row in arguments.rows:
            for mouse in "ABCD":
                train = [table for other in "ABCD" if other != mouse for table in of_mouse[other]]
                found.append({"row": row, "mouse": mouse, "F1": score(ROWS[row], train, of_mouse[mouse])})
                print(found[-1], flush=True)
        table = pd.DataFrame(found).pivot(index="row", columns="mouse", values="F1")
        print(table.assign(mean=table.mean(axis=1)).reindex(arguments.rows).round(3).to_string())
        return
    done = pd.read_csv(kept, dtype=str).set_index(["row", "labels", "draw", "mouse"])["F1"] if kept.exists() else {}
    found = []
    unlabelled = [table.copy() for table in of_mouse["A"] if table.n_vars]
    for table in unlabelled:
        table.obs[LABEL] = pd.Series([None] * table.n_obs, index=table.obs_names, dtype=object)
    for n in SHOTS:
        for draw in range(arguments.draws if n is not None else 1):
            for mouse in "BCD":
                rng = np.random.default_rng(draw)
                labelled = with_labels([t for other in "BCD" if other != mouse for t in of_mouse[other]], n, rng)
                for row in arguments.rows:
                    key = (row, str(n or "all"), str(draw), mouse)
                    value = done.get(key)
                    if value is None:
                        value = score(ROWS[row], [*unlabelled, *labelled], of_mouse[mouse])
                        line = pd.DataFrame([[*key, value]], columns=["row", "labels", "draw", "mouse", "F1"])
                        line.to_csv(kept, mode="a", header=not kept.exists(), index=False)
                    found.append(dict(zip(("row", "labels", "draw", "mouse"), key, strict=True)) | {"F1": float(value)})
    of_draw = pd.DataFrame(found).groupby(["row", "labels", "draw"], sort=False)["F1"].mean()
    both = of_draw.groupby(["row", "labels"], sort=False).agg(["mean", "std"]).unstack()
    print(both.reindex(arguments.rows).round(3).to_string())


if __name__ == "__main__":
    main()
