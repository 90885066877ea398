"""The main job on real slides: expression and subtype of slides and donors that were held out.

    python benchmarks/main_job.py --data FOLDER [--encoder color|mobilenet]

FOLDER holds her2st/, olfactory_bulb/, stutility/ (and encoders/), as in the tests. Prints two tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import slides

import stcontrast as stc
from stcontrast.metrics import gene_correlation
from stcontrast.pp._genes import choose_genes, log_normalize

METHODS = ("stcontrast", "ridge", "color", "mean")
LAYERS = "layer"


def encoder_of(name, folder):
    if name == "color":
        return "color"
    weights = folder / "encoders/mobilenetv2_100.imagenet_quant.safetensors"
    return stc.pp.TimmEncoder("mobilenetv2_100", weights=weights, mean=(0.5,) * 3, std=(0.5,) * 3)


def expression_tasks(folder):
    with stc.settings.override(data_mirror=str(folder / "her2st")):
        breast = {s: stc.datasets.her2st([s]) for s in ("C2", "C3", "C4", "C5", "C6")}
    bulb = {i: slides.olfactory_bulb(folder / "olfactory_bulb", i) for i in (1, 2)}
    array = {s: slides.stutility(folder / "stutility", s) for s in ("MOB1", "MOB2", "MOB3", "MOB4")}
    yield "her2st C2–C5 → C6", [breast[s] for s in ("C2", "C3", "C4", "C5")], [breast["C6"]], "slide"
    yield "olfactory bulb Rep01 → Rep02", [bulb[1]], [bulb[2]], "mouse"
    yield "stutility individual 1 → 2", [array["MOB1"], array["MOB2"]], [array["MOB3"], array["MOB4"]], "individual"


def score_genes(train, n=300):
    """The most variable well-expressed genes, chosen on training slides."""
    tables = [sdata["table"] for sdata in train]
    shared = [g for g in tables[0].var_names if all(g in t.var_names for t in tables[1:])]
    import anndata as ad

    joined = ad.concat([t[:, shared] for t in tables], label="of")
    total = np.concatenate([np.asarray(t.X.sum(axis=1)).ravel() for t in tables])
    chosen = choose_genes(joined.X.tocsr(), total, joined.obs["of"].cat.codes.to_numpy().astype(np.int64), n_genes=n)
    return [shared[i] for i in chosen]


def expression(name, train, test, key, encoder):
    for sdata in [*train, *test]:
        stc.pp.image_features(sdata, encoder=encoder)
    genes = score_genes(train)
    for method in METHODS:
        start = time.perf_counter()
        model = stc.tl.fit(train, batch_key=key, method=method)
        seconds = time.perf_counter() - start
        r = []
        for sdata in test:
            stc.tl.predict_expression(sdata, model)
            table, predicted = sdata["table"], sdata["stc_pred"]
            here = [g for g in genes if g in table.var_names]
            total = np.asarray(table.X.sum(axis=1)).ravel()
            observed = log_normalize(table[:, here].X.tocsr(), total)
            r.append(np.nanmean(gene_correlation(predicted[:, here].X, observed)))
        yield {"task": name, "genes": len(here), "method": method, "mean r": np.mean(r), "fit (s)": seconds}


def subtypes(folder, encoder):
    bulb = {i: slides.olfactory_bulb(folder / "olfactory_bulb", i) for i in range(1, 10)}
    for sdata in bulb.values():
        stc.pp.image_features(sdata, encoder=encoder)
    train, test = [bulb[i] for i in (1, 2, 3, 4, 5)], [bulb[i] for i in (6, 7, 8, 9)]
    for method in METHODS:
        model = stc.tl.fit(train, batch_key="mouse", label_key=LAYERS, method=method)
        stc.tl.classify(test, model)
        tables = pd.concat([sdata["table"].obs for sdata in test])
        tables = tables[tables[LAYERS].notna()]
        score = f1_score(tables[LAYERS].astype(str), tables["stc_class"].astype(str), average="macro")
        name = "logistic regression (ridge)" if method == "ridge" else method
        yield {"method": name, "macro-F1": score, "spots": len(tables)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", choices=("color", "mobilenet"), default="color")
    arguments = parser.parse_args()
    stc.settings.progress = False
    encoder = encoder_of(arguments.encoder, arguments.data)
    rows = [row for task in expression_tasks(arguments.data) for row in expression(*task, encoder)]
    table = pd.DataFrame(rows)
    print(f"Expression, encoder {arguments.encoder}: mean per-gene Pearson r within the held-out slides")
    print(table.pivot(index="task", columns="method", values="mean r")[list(METHODS)].round(3).to_string())
    print(table.pivot(index="task", columns="method", values="fit (s)")[list(METHODS)].round(1).to_string())
    print("\nOlfactory-bulb layers, mice A and B → C and D: macro-F1 over all annotated spots")
    print(pd.DataFrame(subtypes(arguments.data, encoder)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
