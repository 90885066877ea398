"""Whether a change of the code has changed what the methods predict.

    python benchmarks/same_predictions.py record FILE [--data FOLDER] [--methods NAME ...]     # before the change
    python benchmarks/same_predictions.py compare FILE [--data FOLDER] [--methods NAME ...]    # after it

Fits every method on the toy data (with subtypes; the fourth donor is predicted) and on the her2st sections C2 to C5 (C6
is predicted), and keeps expression, interval, class probabilities, in-distribution flags and embeddings in FILE.
``compare`` prints the largest difference of each method, and ends with status 1 where a prediction differs by more than
1e-6. Networks are
trained for a few epochs only: the code that runs is the same. FOLDER holds her2st/, as in the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1]))

TOLERANCE = 1e-6
# row: method, its options, and arguments of the fit
QUICK = {"max_epochs": 3}
ROWS = {
    "mean": ("mean", {}, {}),
    "field": ("field", {}, {}),
    "depth": ("depth", {}, {}),
    "color": ("color", {}, {}),
    "knn": ("knn", {}, {}),
    "ridge": ("ridge", {}, {}),
    "ridge, zeros filled": ("ridge", {}, {"complete": True}),
    "kernel": ("kernel", {}, {}),
    "mlp": ("mlp", {"max_epochs": 10}, {}),
    "bleep": ("bleep", QUICK, {}),
    "mclstexp": ("mclstexp", QUICK, {}),
    "nh2st": ("nh2st", QUICK, {}),
    "nh2st (code)": ("nh2st", {**QUICK, "variant": "code"}, {}),
    "tpirbae": ("tpirbae", {**QUICK, "vae_epochs": 3}, {}),
    "tpirbae, guided": ("tpirbae", {**QUICK, "vae_epochs": 3, "guided": True, "decoder": "retrieval"}, {}),
    "stcontrast": ("stcontrast", {"max_epochs": 15}, {}),
    "stcontrast, VAE": ("stcontrast", {"vae_epochs": 3, "max_epochs": 10, "gene_space": "vae"}, {}),
}


def toy():
    """Three donors to learn from, with a few labels missing, and a fourth to predict."""
    import stcontrast as stc

    slides = [stc.datasets.toy(n_donors=1, n_spots=150, n_genes=60, seed=seed) for seed in range(4)]
    for number, sdata in enumerate(slides):
        table = sdata["table"]
        table.obs["donor"] = f"donor{number}"
        labels = table.obs["subtype"].astype(object)
        labels.iloc[::3] = None
        table.obs["subtype"] = labels
        _rename(sdata, f"slide{number}")
    return slides[:3], slides[3]


def _rename(sdata, name):
    from spatialdata.models import TableModel

    table = sdata["table"]
    old = str(table.obs["region"].iloc[0])
    instance = table.uns["spatialdata_attrs"]["instance_key"]
    sdata.shapes[name] = sdata.shapes.pop(old)
    table.obs["region"] = name
    table.obs["region"] = table.obs["region"].astype("category")
    del table.uns["spatialdata_attrs"]
    ours = table.uns.get("stcontrast", {})
    if "um_per_px" in ours:
        ours["um_per_px"] = dict.fromkeys([name], *ours["um_per_px"].values())
    del sdata.tables["table"]
    sdata.tables["table"] = TableModel.parse(table, region=[name], region_key="region", instance_key=instance)


def her2st(data):
    """Sections C2 to C5 of one patient to learn from, and C6."""
    import stcontrast as stc

    with stc.settings.override(data_mirror=str(data / "her2st")):
        train = stc.datasets.her2st(["C2", "C3", "C4", "C5"])
        return [train], stc.datasets.her2st(["C6"])


def found(train, test, row, *, labels):
    """Everything that a method says of the test slide, from the saved and read model too."""
    import stcontrast as stc

    method, options, arguments = ROWS[row]
    train = [_copy(sdata) for sdata in train]
    test = _copy(test)
    keys = {"batch_key": "donor", "label_key": "subtype"} if labels else {}
    model = stc.tl.fit(train, method=method, options=options, **keys, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        model = stc.models.load(Path(folder) / "model")
    stc.tl.predict_expression(test, model)
    predicted = test["stc_pred"]
    parts = {"expression": predicted.X, **{name: predicted.layers[name] for name in ("lower", "upper")}}
    parts["in distribution"] = predicted.obs["stc_in_distribution"].to_numpy(dtype=float)
    if labels:
        stc.tl.classify(test, model)
        parts["probability"] = test["table"].obsm["stc_class_proba"]
    for i, sdata in enumerate(train):
        obsm = sdata["table"].obsm
        parts |= {f"{key} {i}": obsm[key] for key in ("X_stc_image", "X_stc_gene", "X_stc_vae") if key in obsm}
    return {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def _copy(sdata):
    from spatialdata import SpatialData

    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": sdata["table"].copy()})


def main():
    """Record or compare."""
    import stcontrast as stc

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", choices=list(ROWS), default=list(ROWS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stc.settings.progress = False
    tasks = {"toy": (toy(), True)}
    if arguments.data is not None:
        tasks["her2st"] = (her2st(arguments.data), False)
    recorded = {} if arguments.action == "record" else dict(np.load(arguments.file))
    kept, worst = {}, 0.0
    if arguments.action == "compare":
        print(f"{'largest difference of':33s} {'predictions':>12s} {'embeddings':>12s}")
    with threadpool_limits(1):
        for task, ((train, test), labels) in tasks.items():
            for sdata in (*train, test):
                stc.pp.image_features(sdata)
            for row in arguments.methods:
                parts = {f"{task}/{row}/{name}": part for name, part in found(train, test, row, labels=labels).items()}
                if arguments.action == "record":
                    kept |= parts
                    print(f"{task:8s} {row:24s} recorded", flush=True)
                    continue
                differences = {name: _difference(part, recorded.get(name)) for name, part in parts.items()}
                of_embeddings = max((d for name, d in differences.items() if "/X_stc" in name), default=0.0)
                largest = max(d for name, d in differences.items() if "/X_stc" not in name)
                worst = max(worst, largest)
                print(f"{task:8s} {row:24s} {largest:12.3g} {of_embeddings:12.3g}", flush=True)
    if arguments.action == "record":
        np.savez_compressed(arguments.file, **kept)
    return int(worst > TOLERANCE)


def _difference(part, before):
    if before is None or before.shape != part.shape or (np.isnan(part) != np.isnan(before)).any():
        return np.inf
    with np.errstate(invalid="ignore"):
        between = np.where(part == before, 0.0, np.abs(part - before))
    return float(np.nan_to_num(between, nan=0.0).max(initial=0.0))


if __name__ == "__main__":
    sys.exit(main())
