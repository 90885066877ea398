"""What each leak of published protocols is worth: the same methods on the same spots, one switch after the other.

    python benchmarks/protocols.py --slides OUT/slides [--methods NAME ...] [--figure docs/_static/protocols.svg]

OUT/slides is what ``benchmarks/accuracy.py --data FOLDER --out OUT`` leaves. her2st: patients A and C have an image, two and
five sections. Under our protocol a method learns from the sections of one patient and predicts those of the other;
expression is normalised by the full library of each spot, as measured; r is the mean over 250 genes that are chosen on the
training sections. Each switch changes one of these things:

- siblings: the other sections of the tested patient are in training too (leave one section out, as in HisToGene, Hist2ST
  and mclSTExp);
- gene axis: every *gene* is scaled to 10 000 over its section, in targets and truth, and depth stays in (the public code of
  mclSTExp);
- smoothed: expression is the mean over a spot and its adjacent spots, in targets and truth (TRIPLEX, NH²ST);
- best 50 genes: r is the mean of the 50 genes with the highest r on the tested section itself (NH²ST; TRIPLEX in a form).

Prints r of every method under ours, each switch alone, and all together; then differences to ours. Means over the tested
sections of a patient, then over both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

DONORS = {"A1": "A", "A2": "A", "C2": "C", "C3": "C", "C4": "C", "C5": "C", "C6": "C"}
TESTED = ("A1", "A2", "C3", "C6")
N_GENES = 250
N_BEST = 50
# adjacent on a square lattice, its diagonals too
ADJACENT = 1.6
SWITCHES = {
    "ours": (),
    "siblings": ("siblings",),
    "gene axis": ("gene axis",),
    "smoothed": ("smoothed",),
    "best 50 genes": ("best",),
    "all four": ("siblings", "gene axis", "smoothed", "best"),
}
LABELS = {
    "ours": "our protocol",
    "siblings": "+ other sections of\nthe patient in training",
    "gene axis": "+ genes scaled over\nthe section",
    "smoothed": "+ smoothed expression",
    "best 50 genes": "+ best 50 genes of\nthe tested section",
    "all four": "all four",
}
NAMES = {
    "field": "chance: a random field", "depth": "oracle: measured depth", "ridge": "ridge", "bleep": "bleep",
    "stcontrast": "stcontrast",
}  # fmt: skip


def read(folder):
    """Tables of all sections, with the genes that all of them have."""
    tables = {name: ad.read_h5ad(folder / f"{name}.h5ad") for name in DONORS}
    for table in tables.values():
        table.obs["depth"] = np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()
    shared = set.intersection(*(set(table.var_names) for table in tables.values()))
    genes = [gene for gene in tables["C6"].var_names if gene in shared]
    return {name: table[:, genes].copy() for name, table in tables.items()}


def expression(counts, depth, xy, switches):
    """Expression (n_spots, n_genes) of one section, as a protocol has it."""
    from stcontrast._data import lattice_coordinates, log_normalize

    if "gene axis" in switches:
        of_gene = np.maximum(counts.sum(axis=0, keepdims=True), 1)
        values = np.log10(1 + 1e4 * counts / of_gene)
    else:
        from scipy import sparse

        values = np.asarray(log_normalize(sparse.csr_matrix(counts), depth))
    if "smoothed" in switches:
        lattice = lattice_coordinates(xy, np.zeros(len(xy), dtype=np.int64)).astype(float)
        near = np.linalg.norm(lattice[:, None] - lattice[None], axis=2) < ADJACENT
        values = near @ values / near.sum(axis=1, keepdims=True)
    return values.astype(np.float32)


def spots_of(names, tables, genes, switches, method):
    """Sections as a table of spots, with the expression of a protocol."""
    from scipy import sparse

    from stcontrast._data import Spots

    counts = [np.asarray(tables[name][:, genes].X.todense(), dtype=np.float32) for name in names]
    depths = [tables[name].obs["depth"].to_numpy() for name in names]
    xy = [np.asarray(tables[name].obsm["spatial"], dtype=np.float64) for name in names]
    values = [expression(*part, switches) for part in zip(counts, depths, xy, strict=True)]
    sizes = [len(part) for part in counts]
    donor = np.repeat([DONORS[name] for name in names], sizes)
    spots = Spots.of(
        np.repeat(np.arange(len(names)), sizes), np.concatenate(xy), donor=donor, batch=donor,
        name=np.array([f"spot{i}" for i in range(sum(sizes))]), slides=list(names), genes=list(genes),
        features=np.concatenate([np.asarray(tables[name].obsm["X_image"], dtype=np.float32) for name in names]),
        counts=sparse.csr_matrix(np.concatenate(counts)), depth=np.concatenate(depths),
        observed=np.concatenate(values), target=np.concatenate(values),
    )  # fmt: skip
    return spots.with_design(n_neighbors=method.n_neighbors, standardize="slide")


def genes_of(names, tables):
    """The most variable well-expressed genes of the training sections."""
    from stcontrast._data import choose_genes

    joined = ad.concat([tables[name] for name in names], label="of")
    total = np.asarray(joined.X.sum(axis=1)).ravel()
    chosen = choose_genes(
        joined.X.tocsr(), total, joined.obs["of"].cat.codes.to_numpy().astype(np.int64), n_genes=N_GENES
    )
    return [joined.var_names[i] for i in chosen]


def predicted(method, names, tested, tables, switches):
    """Correlation of every gene of the tested sections, by a method that learns from other sections."""
    from stcontrast._data import inner_folds
    from stcontrast.methods._base import get_method
    from stcontrast.methods.published._trained import TrainedMethod
    from stcontrast.metrics import gene_correlation

    genes = genes_of(names, tables)
    made = get_method(method)
    train = spots_of(names, tables, genes, switches, made)
    if isinstance(made, TrainedMethod):
        made.fit_parts(train)  # its inner folds would only calibrate an interval
    else:
        made.fit(train, inner_folds(train))
    found = {}
    for name in tested:
        test = spots_of([name], tables, genes, switches, made)
        unseen = replace(test.unseen(depth=made.oracle), slides=[name])
        found[name] = gene_correlation(made.predict_expression(unseen), test.observed)
    return found


def by_protocol(method, tables):
    """Mean r of a method under every protocol."""
    found = {}
    for switches in SWITCHES.values():
        of_data = tuple(switch for switch in switches if switch != "best")
        if of_data in found:
            continue
        if "siblings" in switches:
            parts = [([other for other in DONORS if other != name], [name]) for name in TESTED]
        else:
            parts = [
                ([name for name in DONORS if DONORS[name] != donor], [name for name in TESTED if DONORS[name] == donor])
                for donor in sorted(set(DONORS.values()))
            ]
        found[of_data] = {
            name: r for train, tested in parts for name, r in predicted(method, train, tested, tables, of_data).items()
        }
    return {
        protocol: mean_over_donors(
            found[tuple(switch for switch in switches if switch != "best")], best="best" in switches
        )
        for protocol, switches in SWITCHES.items()
    }


def mean_over_donors(r, *, best):
    """Mean over genes, or over the best of them; over the sections of a patient; over patients."""
    of_slide = {
        name: np.nanmean(np.sort(np.nan_to_num(values))[::-1][:N_BEST] if best else values)
        for name, values in r.items()
    }
    return float(pd.Series(of_slide).groupby([DONORS[name] for name in of_slide]).mean().mean())


def draw(table, path):
    """A bar a protocol and method."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "protocols"
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    height = 0.8 / len(table)
    colors = ["0.8", "0.55", *plt.get_cmap("tab10").colors]
    for i, (name, scores) in enumerate(table.iterrows()):
        at = np.arange(len(scores)) + (i - (len(table) - 1) / 2) * height
        ax.barh(at, scores, height=0.9 * height, color=colors[i], label=NAMES.get(name, name))
    ax.set_yticks(range(table.shape[1]), [LABELS[name] for name in table.columns])
    ax.invert_yaxis()
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("mean correlation per gene within the tested section")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(NAMES), metavar="NAME")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    tables = read(arguments.slides)
    rows = {}
    for method in arguments.methods:
        start = time.process_time()
        rows[method] = by_protocol(method, tables)
        print(f"{method}: {time.process_time() - start:.0f} s", flush=True)
    table = pd.DataFrame(rows).T[list(SWITCHES)]
    print(table.round(3).to_string())
    print((table.sub(table["ours"], axis=0)).drop(columns="ours").round(3).to_string())
    if arguments.figure is not None:
        draw(table, arguments.figure)


if __name__ == "__main__":
    main()
