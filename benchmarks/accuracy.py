"""All methods and baselines on the same features and the same folds: how well each predicts slides it never saw.

    python benchmarks/accuracy.py --data FOLDER --out FOLDER [--rows NAME ...] [--tasks NAME ...] [--encoder NAME]
                                  [--neighbors N] [--seeds N ...] [--once]

FOLDER holds her2st/, olfactory_bulb/ and stutility/, as in the tests. Every row runs in a process of its own, so that its
peak memory is its own; results are written to OUT/results.jsonl as they come, and a repeated call takes up where the last
one stopped. Prints four tables: accuracy, differences to ridge, intervals,
and recall from image to gene on held-out slides; all are means over the seeds, and with several of them a fifth has the
mean, the range and the number of seeds. ``--once`` trains
methods without a choice on inner folds (the published ones) once, not in every fold too: there is no interval then. ``--encoder color`` takes plain colour
statistics at 100, 200 and 400 µm instead of the default features, ``densenet121`` and ``mobilenetv2_100`` networks in
FOLDER/encoders at 200 and 400 µm. ``--neighbors`` gives every method that many neighbours
beside a spot's own features, instead of what each takes by default.
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

from accuracy_tables import accuracy, intervals, margins, over_seeds, retrieval

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
    "ridge, HEST": {"method": "ridge", "recipe": "hest"},
    "kernel": {},
    "mlp": {},
    "clip": CLIP,
    "bleep": {},
    "bleep, targets from inputs": {"method": "bleep", "targets": "input"},
    "mclstexp": {},
    "mclstexp, fast": {"method": "mclstexp", "fast": True},
    "nh2st (paper)": {"method": "nh2st"},
    "nh2st (paper), fast": {"method": "nh2st", "fast": True},
    "nh2st (code), fast": {"method": "nh2st", "variant": "code", "fast": True},
    "nh2st (code)": {"method": "nh2st", "variant": "code"},
    "mvitgene": {},
    "mvitgene, regression": {"method": "mvitgene", "decoder": "regression"},
    "magic": {},
    "triplex": {},
    "triplex, rank loss": {"method": "triplex", "expression_loss": "rank"},
    "deepspot": {},
    "deepspot, rank loss": {"method": "deepspot", "expression_loss": "rank"},
    "tpirbae": {},
    "tpirbae, similarity targets": {"method": "tpirbae", "loss": "similarity_target", "targets": "input"},
    "tpirbae, guided": {"method": "tpirbae", "guided": True},
    "stcontrast": {},
    "stcontrast, no contrast": {"method": "stcontrast", "contrastive_weight": 0.0},
    "stcontrast, VAE": {"method": "stcontrast", "gene_space": "vae"},
    "stcontrast, untrained": {"method": "stcontrast", "max_epochs": 0},
}
MICE = {
    **{f"Rep{i:02d}": "A" for i in (1, 2, 3, 4)}, "Rep05": "B", "Rep06": "C", "Rep07": "C", "Rep08": "D", "Rep09": "D",
}  # fmt: skip
# task: slides, what is held out of each, and what of these is held out in turn
TASKS = {
    "C2-5 > C6": ({s: s for s in ("C2", "C3", "C4", "C5", "C6")}, ["C6"]),
    "her2st A, C": ({**dict.fromkeys(("C2", "C3", "C4", "C5", "C6"), "C"), "A1": "A", "A2": "A"}, ["A", "C"]),
    "her2st A, C, counts of others": (
        {**dict.fromkeys(("C2", "C3", "C4", "C5", "C6"), "C"), "A1": "A", "A2": "A"},
        ["A", "C"],
    ),
    "arrays 1, 2": ({"MOB1": "1", "MOB2": "1", "MOB3": "2", "MOB4": "2"}, ["1", "2"]),
    "bulb Rep01, 02": ({"Rep01": "Rep01", "Rep02": "Rep02"}, ["Rep01", "Rep02"]),
    "layers": (MICE, ["A", "B", "C", "D"]),
    "layers, 10 %": (MICE, ["A", "B", "C", "D"]),
}
# sections with counts that give no image, to learn the gene space from: those of the held-out patient are left out
COUNTS_ONLY = {
    f"{patient}{i}": patient for patient, n in zip("ABCDEFGH", (6, 6, 6, 6, 3, 3, 3, 3), strict=True) for i in range(1, n + 1)
}  # fmt: skip
LAYERS = "layer"
LAYER_NAMES = ["GCL", "GL", "MCL", "ONL", "OPL"]
# timm's name: file of weights, mean and deviation of its input
NETWORKS = {
    "densenet121": ("densenet121.pathmnist.safetensors", (0, 0, 0), (1, 1, 1)),
    "mobilenetv2_100": ("mobilenetv2_100.imagenet_quant.safetensors", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
SHARE = 0.1
SLIDES = "(slides)"
N_GENES = 300
N_TOP = 50


def make_slides(data, out, encoder):
    """Image features of every slide, once, as AnnData in OUT/slides."""
    from tests import slides

    import stcontrast as stc

    make_counts(data, out)
    folder = out / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({name for task, _ in TASKS.values() for name in task}):
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
        if encoder == "color":
            stc.pp.image_features(sdata, encoder="color", field_um=(100, 200, 400))
        elif encoder == "texture":
            stc.pp.image_features(sdata)
        else:
            file, mean, std = NETWORKS[encoder]
            network = stc.pp.TimmEncoder(encoder, weights=data / "encoders" / file, mean=mean, std=std, size_px=160)
            stc.pp.image_features(sdata, encoder=network, field_um=(200, 400))
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


def make_counts(data, out):
    """Counts of every section of her2st as AnnData without an image, in OUT/counts."""
    from scipy import sparse

    folder = out / "counts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, patient in COUNTS_ONLY.items():
        path = folder / f"{name}.h5ad"
        if path.exists():
            continue
        counts = pd.read_table(data / f"her2st/data/ST-cnts/{name}.tsv.gz", index_col=0)
        counts = counts[counts.sum(axis=1) > 0]
        obs = pd.DataFrame({"library_id": name, "donor": patient}, index=[f"{name}_{spot}" for spot in counts.index])
        table = ad.AnnData(sparse.csr_matrix(counts.to_numpy(dtype=np.float32)), obs=obs)
        table.var_names = counts.columns.astype(str)
        table.write_h5ad(path)


def genes_of(train):
    """The most variable well-expressed genes of the training slides, most variable first."""
    from stcontrast._data import choose_genes

    tables = [table for table in train if table.n_vars]
    shared = [gene for gene in tables[0].var_names if all(gene in table.var_names for table in tables[1:])]
    joined = ad.concat([table[:, shared] for table in tables], label="of")
    total = np.concatenate([np.asarray(table.X.sum(axis=1)).ravel() for table in tables])
    slide = joined.obs["of"].cat.codes.to_numpy().astype(np.int64)
    return [shared[i] for i in choose_genes(joined.X.tocsr(), total, slide, n_genes=N_GENES)]


def run_task(name, folder, row, n_neighbors, seed):
    """Hold out each group of a task in turn: a result for each slide or donor."""
    import stcontrast as stc

    groups, held_out = TASKS[name]
    of_layers = "layers" in name
    if of_layers and row["method"] == "depth":
        return  # most of these slides have no counts
    tables = {slide: ad.read_h5ad(folder / f"{slide}.h5ad") for slide in groups}
    for slide, table in tables.items():
        table.obs["donor"] = groups[slide]
    options = {key: value for key, value in row.items() if key != "method"}
    for group in held_out:
        train = [tables[slide].copy() for slide in groups if groups[slide] != group]
        test = {slide: tables[slide] for slide in groups if groups[slide] == group}
        if "10 %" in name:
            rng = np.random.default_rng(0)
            for table in train:
                table.obs.loc[rng.random(table.n_obs) > SHARE, LAYERS] = None
        start = time.process_time()
        others = []
        if "counts of others" in name:
            alone = [other for other, patient in COUNTS_ONLY.items() if patient != group and other not in groups]
            others = [ad.read_h5ad(folder.parent / "counts" / f"{other}.h5ad") for other in alone]
        model = stc.tl.fit(
            [*train, *others], batch_key="donor", label_key=LAYERS if of_layers else None, method=row["method"], options=options,
            n_neighbors=n_neighbors, seed=seed,
        )  # fmt: skip
        shared = {"task": name, "group": group, "seed": seed, "seconds": time.process_time() - start}
        scores = classes(test, model) if of_layers else expression(test, model, genes_of(train))
        for result in scores:
            yield {**shared, **result, "held-out r of the model": model.spec.get("held_out_r")}


def classes(test, model):
    """Confusion of a donor's spots."""
    from sklearn.metrics import confusion_matrix, f1_score

    import stcontrast as stc

    stc.tl.classify(list(test.values()), model)
    obs = pd.concat([table.obs for table in test.values()])
    obs = obs[obs[LAYERS].notna()]
    truth, guess = obs[LAYERS].astype(str), obs["stc_class"].astype(str)
    counted = confusion_matrix(truth, guess, labels=LAYER_NAMES).tolist()
    yield {"macro-F1": f1_score(truth, guess, average="macro"), "confusion": counted}


def expression(test, model, genes):
    """Correlation, interval and shape of the prediction of every gene, slide by slide."""
    import stcontrast as stc
    from stcontrast._data import log_normalize
    from stcontrast.metrics import correlation_ceiling, gene_correlation, moran_difference, rmse, variance_ratio

    for slide, table in test.items():
        predicted = stc.tl.predict_expression(table, model, donor_key="donor")
        here = [gene for gene in genes if gene in table.var_names and gene in predicted.var_names]
        counts, depth = table[:, here].X.tocsr(), np.asarray(table.X.sum(axis=1)).ravel()
        observed, found = log_normalize(counts, depth), np.asarray(predicted[:, here].X)
        lower, upper = (np.asarray(predicted[:, here].layers[name]) for name in ("lower", "upper"))
        r = gene_correlation(found, observed)
        recall = {"by expression": recall_at_10(found, observed)}
        if hasattr(model.method, "parts"):
            embedded = with_genes(table, model.genes)
            stc.tl.embed(embedded, model)
            recall["by embedding"] = recall_at_10(embedded.obsm["X_stc_image"], embedded.obsm["X_stc_gene"])
        yield {
            "slide": slide, "mean r": np.nanmean(r), "r given depth": np.nanmean(partial(found, observed, depth)), "top r": np.nanmean(r[: N_TOP]), "rmse": np.nanmean(rmse(found, observed)),
            "variance ratio": np.nanmean(variance_ratio(found, observed)),
            "Moran difference": np.nanmean(moran_difference(found, observed, np.asarray(table.obsm["spatial"]))),
            "ceiling": np.nanmean(correlation_ceiling(counts, depth)),
            # without an interval there is nothing to cover
            "coverage": ((lower <= observed) & (observed <= upper)).mean() if np.isfinite(upper).all() else None,
            "width": (upper - lower).mean(dtype=float) if np.isfinite(upper).all() else None,
            "recall": recall,
            "r by gene": dict(zip(here, np.round(r, 5).tolist(), strict=True)),
        }  # fmt: skip


def with_genes(table, genes):
    """A copy of a table in which genes that were never seen on it are zeros."""
    from scipy import sparse

    absent = [gene for gene in genes if gene not in table.var_names]
    counts = sparse.hstack([table.X, sparse.csr_matrix((table.n_obs, len(absent)))], format="csr")
    var = pd.DataFrame(index=[*table.var_names, *absent])
    return ad.AnnData(counts, obs=table.obs.copy(), var=var, obsm=dict(table.obsm), uns=dict(table.uns))


def recall_at_10(image, gene):
    """Recall at 10 from image to gene, centred within the slide, less that of chance."""
    from stcontrast.metrics import retrieval_recall

    centered = [values - values.mean(axis=0) for values in (image, gene)]
    found = retrieval_recall(*centered, np.zeros(len(image), dtype=int), k=10).iloc[0]
    return found["recall"] - found["chance"]


def partial(found, observed, depth):
    """Correlation of every gene once the linear effect of log depth is taken out of both."""
    from stcontrast.metrics import gene_correlation

    axis = np.log1p(depth) - np.log1p(depth).mean()
    residuals = []
    for values in (found, observed):
        centered = values - values.mean(axis=0)
        residuals.append(centered - np.outer(axis, axis @ centered / (axis @ axis)))
    # a prediction that is linear in depth leaves rounding errors
    residuals[0][:, residuals[0].std(axis=0) < 1e-4 * found.std(axis=0)] = 0
    return gene_correlation(residuals[0], residuals[1])


def train_once():
    """Leave out the fits of inner folds, where a method chooses nothing on them."""
    from stcontrast._data import Prediction
    from stcontrast.methods import Method

    Method.predict_out_of_fold = lambda self, spots, folds: Prediction.empty(
        len(spots), n_genes=spots.n_genes, n_classes=spots.n_classes
    )


def run_row(arguments):
    """In a process of its own: one row on some tasks."""
    import stcontrast as stc

    stc.settings.progress = False
    if arguments.once:
        train_once()
    row = {"method": arguments.run, **ROWS[arguments.run]}
    for task in arguments.tasks:
        for result in run_task(task, arguments.out / "slides", row, arguments.neighbors, *arguments.seeds):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps({"row": arguments.run, **result, "GiB": memory}, default=float), flush=True)


def read(kept):
    """The results so far; those of before there were seeds are of seed 0."""
    results = pd.read_json(kept, lines=True, dtype={"group": str})
    return results.assign(seed=results["seed"].fillna(0).astype(int) if "seed" in results else 0)


def finished(kept):
    """Rows, tasks and seeds of which every group is there."""
    if not kept.exists():
        return set()
    groups = read(kept).groupby(["row", "task", "seed"])["group"].agg(set)
    return {key for key, there in groups.items() if there == set(TASKS[key[1]][1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--encoder", choices=("texture", "color", *NETWORKS), default="texture")
    parser.add_argument("--neighbors", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--run", choices=[SLIDES, *ROWS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run == SLIDES:
        make_slides(arguments.data, arguments.out, arguments.encoder)
        return
    if arguments.run:
        run_row(arguments)
        return
    again = [sys.executable, __file__, "--out", str(arguments.out)]
    if arguments.data is not None:
        # a process of its own: a child starts with the peak memory of its parent
        slides = ["--run", SLIDES, "--data", str(arguments.data), "--encoder", arguments.encoder]
        subprocess.run([*again, *slides], check=True)
    kept = arguments.out / "results.jsonl"
    for row, seed in [(row, seed) for seed in arguments.seeds for row in arguments.rows]:
        missing = [task for task in arguments.tasks if (row, task, seed) not in finished(kept)]
        if not missing:
            continue
        command = [*again, "--run", row, "--seeds", str(seed), "--tasks", *missing]
        if arguments.neighbors is not None:
            command += ["--neighbors", str(arguments.neighbors)]
        if arguments.once:
            command += ["--once"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child, kept.open("a") as file:
            for line in child.stdout:
                if line.startswith("{"):
                    file.write(line)
                    file.flush()
        if child.returncode:
            sys.exit(f"row {row!r}, seed {seed} failed; what was finished before is in {kept}")
    results = read(kept).fillna({"slide": ""})
    results = results.drop_duplicates(["row", "task", "group", "slide", "seed"], keep="last")
    results = results.reindex(columns=[*results.columns.union(["mean r", "macro-F1", "confusion", "r by gene"])])
    rows = [row for row in ROWS if row in set(results["row"])]
    print(accuracy(results, TASKS).reindex(rows).round(3).to_string())
    if {"ridge", "mean"} <= set(results.loc[results["mean r"].notna(), "row"]):
        print(margins(results).reindex(rows).to_string())
        print(intervals(results).reindex(rows).round(3).to_string())
    if "recall" in results:
        print(retrieval(results).to_string())
    if results["seed"].nunique() > 1:
        print(over_seeds(results).reindex(rows).to_string())


if __name__ == "__main__":
    main()
