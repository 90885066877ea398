"""Does fine-tuning help on a donor that nobody has seen?

    python benchmarks/fine_tuning.py --seeds 0 1 [--methods ridge bleep mclstexp tpirbae]
    python benchmarks/fine_tuning.py --data FOLDER --methods ridge mclstexp [--epochs 5] [--size-px 96]

The same network, frozen and fine-tuned, at the same field; ridge regression on its features, or another method. Of methods
whose own loss can train a network, fine-tuned by the joint loss and by their own.

Without ``--data``, toy slides and a small network with random weights, the last donor held out; the options were chosen by the
correlation with inner held-out donors (the model's spec) on toy slides of another seed. With it, DenseNet-121, mclSTExp's
published backbone, with the weights of FOLDER/encoders: her2st C2 to C5 train, C6 is predicted.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from spatialdata import SpatialData
from spatialdata.models import TableModel

import stcontrast as stc

N_DONORS = 4
FIELD_UM = 100.0
OPTIONS: dict[str, Any] = {
    "epochs": 10,
    "learning_rate": 1e-3,
    "layer_decay": 1.0,
    "batch_size": 64,
    "micro_batch": 64,
    "batch_norm": "adapted",
}
METHODS: dict[str, dict[str, Any]] = {"ridge": {}, "bleep": {}, "mclstexp": {"fast": True}, "tpirbae": {}}


def toy(seed: int) -> tuple[SpatialData, SpatialData, dict[str, Any], dict[str, Any]]:
    """Slides to train on, a slide to predict, arguments of `fit`, options of the fine-tuning."""
    sdata = stc.datasets.toy(n_donors=N_DONORS, n_spots=120, n_genes=120, seed=seed)
    donors = [f"donor{i + 1}" for i in range(N_DONORS)]
    encoder = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64, seed=seed)
    how = {"batch_key": "donor", "label_key": "subtype", "encoder": encoder, "field_um": FIELD_UM}
    return _donors(sdata, donors[:-1]), _donors(sdata, donors[-1:]), how, OPTIONS


def her2st(data: Path, epochs: int, size_px: int) -> tuple[SpatialData, SpatialData, dict[str, Any], dict[str, Any]]:
    """The same of her2st and DenseNet-121; its range of learning rates and decay is the default of the package."""
    with stc.settings.override(data_mirror=str(data / "her2st")):
        train, new = stc.datasets.her2st(["C2", "C3", "C4", "C5"]), stc.datasets.her2st(["C6"])
    weights = data / "encoders/densenet121.pathmnist.safetensors"
    encoder = stc.pp.TimmEncoder("densenet121", weights=weights, mean=(0, 0, 0), std=(1, 1, 1), size_px=size_px)
    how = {"batch_key": "slide", "encoder": encoder, "field_um": 200.0, "n_genes": 300}
    return train, new, how, {"epochs": epochs, "batch_size": 128, "micro_batch": 32}


def measure(
    train: SpatialData, new: SpatialData, how: dict[str, Any], tuning: dict[str, Any], method: str, *, seed: int
) -> dict[str, float | str]:
    """Mean gene correlation and share of right subtypes on new slides, of the frozen and the fine-tuned network."""
    found: dict[str, float | str] = {"method": method, "seed": seed}
    towers: dict[str, dict[str, Any]] = {
        "frozen": {},
        "fine-tuned": {"image_tower": "finetune", "tower_options": tuning},
        "own loss": {"image_tower": "finetune", "tower_options": {**tuning, "loss": "method"}},
    }
    if method == "ridge":
        del towers["own loss"]
    for name, tower in towers.items():
        start = time.perf_counter()
        here, there = _copied(train), _copied(new)
        model = stc.tl.fit(here, method=method, options=METHODS[method], seed=seed, **how, **tower)
        stc.tl.predict_expression(there, model)
        if "label_key" in how:
            stc.tl.classify(there, model)
        found |= {f"{name} {key}": value for key, value in _scores(there, model).items()}
        found[f"{name} seconds"] = time.perf_counter() - start
    return found


def _copied(sdata: SpatialData) -> SpatialData:
    """Another object with the same images, so that nothing of one run is found by the next."""
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables)


def _scores(new: SpatialData, model: stc.models.Predictor) -> dict[str, float]:
    table = new["table"]
    genes = [gene for gene in model.genes if gene in table.var_names]
    counts = table.X.toarray()
    truth = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, table.var_names.get_indexer(genes)]
    found = {
        "inner r": model.spec["held_out_r"],
        "r": float(np.nanmean(stc.metrics.gene_correlation(new["stc_pred"][:, genes].X, truth))),
    }
    if "stc_class" in table.obs:
        right = table.obs["stc_class"].astype(str) == table.obs["subtype_truth"].astype(str)
        found["subtype"] = float(right.mean())
    return found


def _donors(sdata: SpatialData, donors: list[str]) -> SpatialData:
    table = sdata["table"][sdata["table"].obs["donor"].isin(donors)].copy()
    regions = sorted(set(table.obs["region"].astype(str)))
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    table.uns.pop("spatialdata_attrs")
    return SpatialData(
        images={f"{name}_he": sdata.images[f"{name}_he"] for name in regions},
        shapes={name: sdata.shapes[name] for name in regions},
        tables={"table": TableModel.parse(table, region=regions, region_key="region", instance_key="spot_id")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the test data: her2st and DenseNet-121")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ridge"])
    parser.add_argument("--epochs", type=int, default=5, help="of DenseNet-121")
    parser.add_argument("--size-px", type=int, default=96, help="of DenseNet-121")
    arguments = parser.parse_args()
    stc.settings.progress = False
    torch.set_num_threads(1)
    found = []
    for seed in arguments.seeds:
        data = her2st(arguments.data, arguments.epochs, arguments.size_px) if arguments.data else toy(seed)
        found += [measure(*data, method, seed=seed) for method in arguments.methods]
    print(pd.DataFrame(found).set_index(["method", "seed"]).T.round(3).to_string())


if __name__ == "__main__":
    main()
