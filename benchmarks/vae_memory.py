"""Peak memory and time of training BatchAgnosticVAE from disk, against the number of spots.

    python benchmarks/vae_memory.py --out OUT --spots 10000 100000 1000000

Synthetic counts (one gene in ten of each spot, several donors, one store each) are written to OUT/stores part by part
and deleted again. Each number of spots is trained on, and encoded, in a process of its own: one epoch with one donor
held out. OUT then holds vae_memory.csv and vae_memory.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

SPOTS_WRITTEN_AT_ONCE = 8192
GENES_PER_COUNT = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--spots", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--donors", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        print(json.dumps(train(arguments.train, arguments.batch_size)))
        return
    rows = [measured(n_spots, arguments) for n_spots in sorted(arguments.spots)]
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out / "vae_memory.csv", index=False)
    print(table.round(2).to_string(index=False))
    if len(table) > 1:
        first, last = table.iloc[-2], table.iloc[-1]
        for what in ("epoch_s", "encode_s", "epoch_cpu_s", "encode_cpu_s"):
            slope = np.polyfit(np.log(table["spots"]), np.log(table[what]), 1)[0]
            step = np.log(last[what] / first[what]) / np.log(last["spots"] / first["spots"])
            print(f"slope of log {what} over log spots: {slope:.2f}; between the two largest: {step:.2f}")
        plot(table, arguments.out / "vae_memory.png")


def measured(n_spots, arguments):
    folder = arguments.out / "stores"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        start = time.perf_counter()
        write_stores(folder, n_spots, arguments.genes, arguments.donors)
        written = time.perf_counter() - start
        on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        command = [sys.executable, __file__, "--out", arguments.out, "--train", folder]
        command += ["--batch-size", str(arguments.batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{n_spots} spots: {result}", flush=True)
    return {"spots": n_spots, "disk_gib": on_disk / 2**30, "write_s": written, **result}


def write_stores(folder, n_spots, n_genes, n_donors):
    rng = np.random.default_rng(0)
    per_spot = n_genes // GENES_PER_COUNT
    for donor, spots in enumerate(np.array_split(np.arange(n_spots), n_donors)):
        store = zarr.open_group(folder / f"donor{donor}.zarr", mode="w")
        store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = store.create_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [len(spots), n_genes]}
        )
        write_frame(store, "obs", [f"{donor}_{i}" for i in range(len(spots))], {"donor": f"donor{donor}"})
        write_frame(store, "var", [f"gene{i}" for i in range(n_genes)], {})
        matrix.create_array("indptr", data=np.arange(len(spots) + 1, dtype=np.int64) * per_spot)
        # Chunks of 64 spots in shards of 4096, as annbatch writes its collections.
        layout = {"shape": (len(spots) * per_spot,), "chunks": (64 * per_spot,), "shards": (4096 * per_spot,)}
        data = matrix.create_array("data", dtype="float32", **layout)
        indices = matrix.create_array("indices", dtype="int32", **layout)
        means = rng.gamma(1.0, 1.5, size=n_genes)
        for start in range(0, len(spots), SPOTS_WRITTEN_AT_ONCE):
            n = min(SPOTS_WRITTEN_AT_ONCE, len(spots) - start)
            genes = np.arange(per_spot) * GENES_PER_COUNT + rng.integers(GENES_PER_COUNT, size=(n, per_spot))
            part = slice(start * per_spot, (start + n) * per_spot)
            indices[part] = genes.astype("int32").ravel()
            data[part] = 1 + rng.poisson(means[genes]).astype("float32").ravel()


def write_frame(store, name, index, columns):
    from anndata.io import write_elem

    frame = pd.DataFrame({key: pd.Categorical([value] * len(index)) for key, value in columns.items()}, index=index)
    write_elem(store, name, frame)


def train(folder, batch_size):
    import anndata as ad

    import stcontrast as stc
    from stcontrast.models import BatchAgnosticVAE, SpotsOnDisk

    logging.basicConfig()
    stc.settings.progress = False
    stores = sorted(folder.iterdir())
    before = peak()
    start, _ = clocks()
    spots = SpotsOnDisk(stores, batch_key="donor")
    opened, opened_cpu = clocks()
    model = BatchAgnosticVAE(registry=spots.registry)
    model.train(max_epochs=1, validation_groups=1, batch_size=batch_size, datamodule=spots, accelerator="cpu")
    (trained, trained_cpu), trained_peak = clocks(), peak()
    for store in stores:
        group = zarr.open_group(store, mode="r")
        counts = ad.AnnData(ad.io.sparse_dataset(group["X"]), var=ad.io.read_elem(group["var"]))
        model.get_latent_representation(counts)
    encoded, encoded_cpu = clocks()
    return {
        "open_s": opened - start,
        "epoch_s": trained - opened,
        "encode_s": encoded - trained,
        "epoch_cpu_s": trained_cpu - opened_cpu,
        "encode_cpu_s": encoded_cpu - trained_cpu,
        "imported_gib": before,
        "train_peak_gib": trained_peak,
        "peak_gib": peak(),
    }


def clocks():
    # Seconds of the CPU beside those of the clock: on a machine that does other work too, only they can be compared.
    return time.perf_counter(), time.process_time()


def peak():
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**30 if sys.platform == "darwin" else 2**20)


def plot(table, path):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    seconds.loglog(table["spots"], table["epoch_s"], "o-", label="one epoch")
    seconds.loglog(table["spots"], table["encode_s"], "s-", label="encoding")
    seconds.loglog(table["spots"], table["epoch_cpu_s"], ":", color="grey", label="one epoch, seconds of CPU")
    seconds.set(xlabel="spots", ylabel="seconds")
    memory.loglog(table["spots"], table["peak_gib"], "o-", label="peak")
    memory.loglog(table["spots"], table["imported_gib"], "--", color="grey", label="after imports")
    memory.set(xlabel="spots", ylabel="GiB", ylim=(0.1, 10))
    for axes in (seconds, memory):
        axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
