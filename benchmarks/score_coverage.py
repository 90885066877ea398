"""How often the intervals of `tl.score_genes` hold the measured scores, one slide held out after another.

    python benchmarks/score_coverage.py [--her2st FOLDER] [--sets N]

Eight donors of the toy data, or sections C2 to C6 of her2st in FOLDER. Sets of 1, 5, 20 and 50 genes are drawn at random,
or are the genes that correlate most with a random one on the held-out slide. Prints the share of spots and of slides
whose measured score lies in its interval.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

import stcontrast as stc

SIZES = (1, 5, 20, 50)


def sets_of(measured: np.ndarray, genes: np.ndarray, n: int) -> dict[str, list[str]]:
    """Sets of genes by kind and number."""
    rng = np.random.default_rng(0)
    alike = np.nan_to_num(np.corrcoef(measured.T))
    sets = {}
    for i in range(n):
        for k in SIZES:
            sets[f"random {k} {i}"] = list(genes[rng.choice(len(genes), k, replace=False)])
            sets[f"together {k} {i}"] = list(genes[np.argsort(-alike[rng.integers(len(genes))])[:k]])
    return sets


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--her2st")
    parser.add_argument("--sets", type=int, default=60)
    arguments = parser.parse_args()
    stc.settings.progress = False
    if arguments.her2st:
        sdata = stc.datasets.her2st([f"C{i}" for i in range(2, 7)], mirror=arguments.her2st)
        stc.pp.image_features(sdata, encoder="texture", field_um=200)
    else:
        sdata = stc.datasets.toy(n_donors=8, n_spots=100, n_genes=100)
        stc.pp.image_features(sdata, encoder="texture", field_um=(100, 200))
    names = sorted(sdata.shapes)
    spots, slides = defaultdict(list), defaultdict(list)
    for held_out in names:
        train, new = (
            sdata.subset([item for name in part for item in (name, f"{name}_he")], filter_tables=True)
            for part in ([name for name in names if name != held_out], [held_out])
        )
        model = stc.tl.fit(train, donor_key="donor", method="ridge", n_genes=500)
        stc.tl.predict_expression(new, model, donor_key="donor")
        table, pred = new["table"], new["stc_pred"]
        counts = table.X.toarray()
        measured = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        measured = measured[:, table.var_names.get_indexer(pred.var_names)]
        sets = sets_of(measured, pred.var_names.to_numpy(), arguments.sets)
        found = stc.tl.score_genes(pred, sets).set_index("gene_set")
        for name, genes in sets.items():
            kind = name.rsplit(" ", 1)[0]
            score = measured[:, pred.var_names.get_indexer(genes)].mean(axis=1)
            low, high = pred.obs[f"score_{name}_lower"], pred.obs[f"score_{name}_upper"]
            spots[kind].append(((score >= low) & (score <= high)).mean())
            slides[kind].append(found.loc[name, "lower"] <= score.mean() <= found.loc[name, "upper"])
    print(f"{'genes':>12} {'spots':>8} {'slides':>8}")
    for kind in spots:
        print(f"{kind:>12} {np.mean(spots[kind]):8.3f} {np.mean(slides[kind]):8.3f}")


if __name__ == "__main__":
    main()
