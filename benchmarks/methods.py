"""All methods and baselines on the same features and the same folds: whole donors held out in turn.

    python benchmarks/methods.py --data FOLDER --out FOLDER [--rows NAME ...] [--tasks NAME ...] [--neighbors N]

FOLDER holds her2st/, olfactory_bulb/ and stutility/, as in the tests. Every row runs in a process of its own, so that its
peak memory is its own; results are written to OUT/results.csv as they come, and a repeated call takes up where the last
one stopped. Prints one table. ``--neighbors`` gives every method that many neighbours beside a spot's own features,
instead of what each takes by default.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

# row: method and its options
CLIP = {
    "method": "bleep",
    "loss": "info_nce",
    "normalize": True,
    "temperature": 0.1,
    "max_epochs": 50,
    "batch_size": 128,
}
ROWS = {
    "mean": {},
    "field (chance)": {"method": "field"},
    "depth (oracle)": {"method": "depth"},
    "color": {},
    "knn": {},
    "ridge": {},
    "mlp": {},
    "clip": CLIP,
    "bleep": {},
    "bleep, targets from inputs": {"method": "bleep", "targets": "input"},
    "mclstexp": {},
    "nh2st (paper)": {"method": "nh2st"},
    "nh2st (code)": {"method": "nh2st", "variant": "code"},
    "tpirbae": {},
    "tpirbae, similarity targets": {"method": "tpirbae", "loss": "similarity_target", "targets": "input"},
    "tpirbae, guided": {"method": "tpirbae", "guided": True},
    "stcontrast": {},
}
# task: slides and the donor of each
TASKS = {
    "her2st A, C": {"C2": "C", "C3": "C", "C4": "C", "C5": "C", "C6": "C", "A1": "A", "A2": "A"},
    "stutility 1, 2": {"MOB1": "1", "MOB2": "1", "MOB3": "2", "MOB4": "2"},
    "bulb, sections of mouse A": {"Rep01": "Rep01", "Rep02": "Rep02"},
    "bulb layers, mice A-D": {
        **{f"Rep{i:02d}": "A" for i in (1, 2, 3, 4)}, "Rep05": "B", "Rep06": "C", "Rep07": "C", "Rep08": "D", "Rep09": "D",
    },
}  # fmt: skip
LAYERS = "layer"
SLIDES = "(slides)"
N_GENES = 300
N_TOP = 50


def make_slides(data, out):
    """Image features of every slide, once, as AnnData in OUT/slides."""
    from tests import slides

    import stcontrast as stc

    folder = out / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({name for task in TASKS.values() for name in task}):
        path = folder / f"{name}.h5ad"
        if path.exists():
            continue
        if name.startswith("Rep"):
            sdata = slides.olfactory_bulb(data / "olfactory_bulb", int(name[3:]))
        elif name.startswith("MOB"):
            sdata = slides.stutility(data / "stutility", name)
        elif name.startswith("A"):
            sdata = slides.her2st_low_resolution(data / "her2st", name)
        else:
            with stc.settings.override(data_mirror=str(data / "her2st")):
                sdata = stc.datasets.her2st([name])
        stc.pp.image_features(sdata)
        table = sdata["table"]
        shapes = sdata.shapes[str(table.obs["region"].iloc[0])]
        order = table.obs[table.uns["spatialdata_attrs"]["instance_key"]]
        centers = shapes.geometry.loc[order]
        table.obsm["spatial"] = np.column_stack([centers.x, centers.y])
        plain = ad.AnnData(
            table.X, obs=pd.DataFrame({"library_id": name}, index=table.obs_names), var=pd.DataFrame(index=table.var_names),
            obsm={key: np.asarray(table.obsm[key]) for key in ("X_image", "spatial")},
            uns={"stcontrast": {"image_features": table.uns["stcontrast"]["image_features"]}},
        )  # fmt: skip
        if LAYERS in table.obs:
            plain.obs[LAYERS] = table.obs[LAYERS].to_numpy(dtype=object)
        plain.write_h5ad(path)


def genes_of(train):
    """The most variable well-expressed genes of the training slides, most variable first."""
    from stcontrast.pp._genes import choose_genes

    tables = [table for table in train if table.n_vars]
    shared = [gene for gene in tables[0].var_names if all(gene in table.var_names for table in tables[1:])]
    joined = ad.concat([table[:, shared] for table in tables], label="of")
    total = np.concatenate([np.asarray(table.X.sum(axis=1)).ravel() for table in tables])
    slide = joined.obs["of"].cat.codes.to_numpy().astype(np.int64)
    return [shared[i] for i in choose_genes(joined.X.tocsr(), total, slide, n_genes=N_GENES)]


def run_task(name, folder, row, n_neighbors):
    """Hold out each donor of a task in turn: a result for each slide or donor."""
    from sklearn.metrics import f1_score

    import stcontrast as stc
    from stcontrast.metrics import gene_correlation
    from stcontrast.pp._genes import log_normalize

    tables = {slide: ad.read_h5ad(folder / f"{slide}.h5ad") for slide in TASKS[name]}
    for slide, table in tables.items():
        table.obs["donor"] = TASKS[name][slide]
    of_layers = "layers" in name
    if of_layers and row["method"] == "depth":
        return  # most of these slides have no counts
    options = {key: value for key, value in row.items() if key != "method"}
    for donor in sorted(set(TASKS[name].values())):
        train = [table for slide, table in tables.items() if TASKS[name][slide] != donor]
        test = {slide: table for slide, table in tables.items() if TASKS[name][slide] == donor}
        start = time.perf_counter()
        model = stc.tl.fit(
            train, batch_key="donor", label_key=LAYERS if of_layers else None, method=row["method"], options=options,
            n_neighbors=n_neighbors,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if of_layers:
            stc.tl.classify(list(test.values()), model)
            obs = pd.concat([table.obs for table in test.values()])
            obs = obs[obs[LAYERS].notna()]
            f1 = f1_score(obs[LAYERS].astype(str), obs["stc_class"].astype(str), average="macro")
            yield {"task": name, "donor": donor, "slide": "", "macro-F1": f1, "seconds": seconds}
            continue
        genes = genes_of(train)
        for slide, table in test.items():
            predicted = stc.tl.predict_expression(table, model)
            here = [gene for gene in genes if gene in table.var_names and gene in predicted.var_names]
            observed = log_normalize(table[:, here].X.tocsr(), np.asarray(table.X.sum(axis=1)).ravel())
            r = gene_correlation(np.asarray(predicted[:, here].X), observed)
            top = [i for i, gene in enumerate(here) if gene in set(genes[:N_TOP])]
            yield {
                "task": name, "donor": donor, "slide": slide, "mean r": np.nanmean(r), "top-variance r": np.nanmean(r[top]),
                "seconds": seconds, "held-out r on the card": model.card.get("held_out_r", np.nan),
            }  # fmt: skip


def run_row(arguments):
    """In a process of its own: one row on some tasks."""
    import stcontrast as stc

    stc.settings.progress = False
    row = {"method": arguments.run, **ROWS[arguments.run]}
    for task in arguments.tasks:
        for result in run_task(task, arguments.out / "slides", row, arguments.neighbors):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps({"row": arguments.run, **result, "GiB": memory}), flush=True)


def summary(results, rows):
    """One line a row: means over slides of a donor, then over donors."""
    results = results.assign(slide=results["slide"].fillna(""))
    metrics = ["mean r", "top-variance r", "macro-F1"]
    by_donor = results.groupby(["row", "task", "donor"])[[*metrics, "seconds"]].mean()
    by_task = by_donor.groupby(["row", "task"]).mean()
    parts = {
        f"{task.split(',')[0].split(' ')[0] if 'layers' not in task else 'layers'}: {metric}": by_task.xs(task, level="task")[metric]
        for task in TASKS if task in by_task.index.get_level_values("task")
        for metric in metrics if by_task.xs(task, level="task")[metric].notna().any()
    }  # fmt: skip
    table = pd.DataFrame(parts)
    table["seconds a fit"] = results.groupby("row")["seconds"].mean().round(1)
    table["peak GiB"] = results.groupby("row")["GiB"].max().round(2)
    return table.reindex([row for row in rows if row in table.index])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--neighbors", type=int)
    parser.add_argument("--run", choices=[SLIDES, *ROWS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run == SLIDES:
        make_slides(arguments.data, arguments.out)
        return
    if arguments.run:
        run_row(arguments)
        return
    again = [sys.executable, __file__, "--out", str(arguments.out)]
    if arguments.data is not None:
        # a process of its own: a child starts with the peak memory of its parent
        subprocess.run([*again, "--run", SLIDES, "--data", str(arguments.data)], check=True)
    kept = arguments.out / "results.csv"
    results = pd.read_csv(kept) if kept.exists() else pd.DataFrame(columns=["row", "task"])
    for row in arguments.rows:
        done = set(results.loc[results["row"] == row, "task"])
        missing = [task for task in arguments.tasks if task not in done]
        if not missing:
            continue
        command = [*again, "--run", row, "--tasks", *missing]
        if arguments.neighbors is not None:
            command += ["--neighbors", str(arguments.neighbors)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            sys.exit(f"row {row!r} failed; the rows before it are in {kept}")
        rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        results = pd.concat([results, pd.DataFrame(rows)], ignore_index=True)
        results.to_csv(kept, index=False)
    print(summary(results, arguments.rows).round(3).to_string())


if __name__ == "__main__":
    main()
