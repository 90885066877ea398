"""Does fine-tuning help on a donor that nobody has seen? Toy slides, a small network with random weights, end to end.

    python benchmarks/fine_tuning.py --seeds 0 1 [--methods ridge bleep mclstexp tpirbae]

The same network, frozen and fine-tuned, at the same field; ridge regression on its features, or another method; the last
donor held out. Of methods whose own loss can train a network, fine-tuned by the joint loss and by their own. The options were chosen by the correlation with inner held-out donors (the model's spec) on toy slides of another seed.
"""

from __future__ import annotations

import argparse
import time
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


def measure(seed: int, method: str, *, n_spots: int = 120, n_genes: int = 120) -> dict[str, float | str]:
    """Mean gene correlation and share of right subtypes on the last donor, of the frozen and the fine-tuned network."""
    sdata = stc.datasets.toy(n_donors=N_DONORS, n_spots=n_spots, n_genes=n_genes, seed=seed)
    donors = [f"donor{i + 1}" for i in range(N_DONORS)]
    encoder = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64, seed=seed)
    how: dict[str, Any] = {
        "batch_key": "donor",
        "label_key": "subtype",
        "method": method,
        "encoder": encoder,
        "field_um": FIELD_UM,
    }
    how["options"] = METHODS[method]
    found: dict[str, float | str] = {"method": method, "seed": seed}
    towers: dict[str, dict[str, Any]] = {
        "frozen": {},
        "fine-tuned": {"image_tower": "finetune", "tower_options": OPTIONS},
        "own loss": {"image_tower": "finetune", "tower_options": {**OPTIONS, "loss": "method"}},
    }
    if method == "ridge":
        del towers["own loss"]
    for name, tower in towers.items():
        start = time.perf_counter()
        model = stc.tl.fit(_donors(sdata, donors[:-1]), **how, **tower, seed=seed)
        new = _donors(sdata, donors[-1:])
        stc.tl.predict_expression(new, model)
        stc.tl.classify(new, model)
        found |= {f"{name} {key}": value for key, value in _scores(new, model).items()}
        found[f"{name} seconds"] = time.perf_counter() - start
    return found


def _scores(new: SpatialData, model: stc.models.Predictor) -> dict[str, float]:
    table = new["table"]
    counts = table.X.toarray()
    truth = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, table.var_names.get_indexer(model.genes)]
    right = table.obs["stc_class"].astype(str) == table.obs["subtype_truth"].astype(str)
    return {
        "inner r": model.spec["held_out_r"],
        "r": float(np.nanmean(stc.metrics.gene_correlation(new["stc_pred"].X, truth))),
        "subtype": float(right.mean()),
    }


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ridge"])
    arguments = parser.parse_args()
    stc.settings.progress = False
    torch.set_num_threads(1)
    found = [measure(seed, method) for method in arguments.methods for seed in arguments.seeds]
    print(pd.DataFrame(found).set_index(["method", "seed"]).T.round(3).to_string())


if __name__ == "__main__":
    main()
