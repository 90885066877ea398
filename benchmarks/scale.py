"""What a study costs in CPU seconds and memory, by the number of spots: synthetic spots of 8 donors.

    python benchmarks/scale.py imports
    python benchmarks/scale.py fit [--spots 2000 10000 40000] [--features 252] [--method stcontrast] [--slides 16]
    python benchmarks/scale.py fit --slides 24 --features 1536 --spots 100000
    python benchmarks/scale.py folds --spots 16000 [--methods ridge kernel mean]
    python benchmarks/scale.py cluster --spots 200000 [--method ridge]
    python benchmarks/scale.py gpu --spots 10000 [--methods stcontrast mclstexp nh2st]

``imports``: CPU seconds of the import of every part of the package, beyond numpy and anndata, and memory of the process.

``fit``: each size runs in a process of its own, on one thread. Printed are the CPU seconds of the fit; its memory above
what the process held before the fit (peak), in kB a spot; the peak of the whole process, data and libraries included;
and the exponent of the CPU seconds between the smallest and the largest size. With several numbers of `--slides` there
are as many rows, one number of spots for each.

``gpu``: wall seconds of fits, and crops a second of a ResNet-18, in a process that sees the CUDA device and in one that does not.

``folds``: a cross-validation over the 8 donors, in one process and in two. Prints the share of the cores that was idle
before, the wall seconds, the peak of all processes together beside what the package reckons with, and whether every score is the
same. Both are on one thread a process.

``cluster``: a model of 4000 spots predicts a slide of so many into a store: in this process; on two workers of a dask cluster;
and again with one of them killed half-way. Prints the wall seconds, the peak of the workers, and whether every number is the
same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

N_DONORS = 8
N_GENES = 2000
N_FACTORS = 6


def synthetic(n_spots, n_features, n_slides=2 * N_DONORS):
    """Slides of 8 donors on a square lattice: a few smooth factors drive image features and counts."""
    import numpy as np
    from scipy import sparse

    from stcontrast._data import Spots

    rng = np.random.default_rng(0)
    slide = np.sort(np.arange(n_spots) % n_slides)
    side = int(np.ceil(np.sqrt(n_spots / n_slides)))
    place = np.arange(n_spots) - np.searchsorted(slide, slide)
    xy = np.column_stack([place % side, place // side]).astype(float)
    waves = rng.normal(size=(n_slides, N_FACTORS, 2)) / 6
    shift = rng.uniform(0, 6, size=(n_slides, N_FACTORS))
    factors = np.sin((waves[slide] * xy[:, None]).sum(axis=2) + shift[slide])
    to_features = rng.normal(size=(N_FACTORS, n_features))
    loadings, level = rng.normal(size=(N_FACTORS, N_GENES)) / 2, rng.normal(-1, 1, size=N_GENES)
    features, parts = np.empty((n_spots, n_features), dtype=np.float32), []
    for start in range(0, n_spots, 5000):
        of_part = factors[start : start + 5000]
        features[start : start + 5000] = of_part @ to_features + rng.normal(size=(len(of_part), n_features))
        parts.append(sparse.csr_matrix(rng.poisson(np.exp(of_part @ loadings + level)).astype(np.float32)))
    counts = sparse.csr_matrix(sparse.vstack(parts))
    donor = np.array([f"donor{i * N_DONORS // n_slides}" for i in range(n_slides)])[slide]
    return Spots.of(
        slide.astype(np.int64), xy, features=features, counts=counts, donor=donor, batch=donor,
        depth=np.asarray(counts.sum(axis=1)).ravel().astype(float), slides=[f"slide{i}" for i in range(n_slides)],
        genes=[f"gene{i}" for i in range(N_GENES)], name=np.arange(n_spots).astype(str),
    )  # fmt: skip


def one_fit(n_spots, n_features, method, n_slides):
    """In a process of its own: one fit."""
    import numpy as np
    import torch

    import stcontrast as stc
    from stcontrast.fitted._fit import FitSpec, fit_model

    torch.set_num_threads(1)
    stc.settings.progress = False
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    small = synthetic(400, n_features)
    encoder = {"kind": "given", "name": "synthetic", "n_features": n_features}
    made_by = [{"slot": "X_image", "encoder": encoder, "field_um": [], "n_features": n_features}]
    # what is imported on the first fit is no cost of this one
    fit_model(small, np.arange(400), method=method, fit_spec=FitSpec(), made_by=made_by)
    spots = synthetic(n_spots, n_features, n_slides)
    before = forget_peak()
    start, wall = time.process_time(), time.perf_counter()
    model, _ = fit_model(spots, np.arange(n_spots), method=method, fit_spec=FitSpec(), made_by=made_by)
    peak = memory("VmHWM")
    found = {
        "method": method, "slides": n_slides, "spots": n_spots, "features": n_features, "CPU s": time.process_time() - start,
        "wall s": time.perf_counter() - wall, "kB a spot": (peak - before) / n_spots, "peak GiB": peak / 2**20,
        "held-out r": model.spec["held_out_r"],
    }  # fmt: skip
    print(json.dumps(found))


def forget_peak():
    """Let the peak of this process begin anew (Linux): the kB that it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(what):
    """kB of this process, by the operating system's accounting: held (``VmRSS``) or the peak (``VmHWM``)."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0])


IMPORTED = """
import json, resource, time
import numpy, anndata
before = time.process_time()
import stcontrast.{part}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"part": "{part}", "CPU s": time.process_time() - before, "MB": peak / 1024}}))
"""


def imports(_):
    """CPU seconds of an import: the least of three processes each."""
    rows = []
    for part in ("pp", "tl", "pl", "methods", "metrics", "models", "datasets"):
        runs = [in_process(["-c", IMPORTED.format(part=part)]) for _ in range(3)]
        rows.append(min(runs, key=lambda run: run["CPU s"]))
    show(rows)


def fit(arguments):
    """Cost of a fit by the number of spots."""
    import numpy as np

    rows = []
    slides = arguments.slides * (len(arguments.spots) if len(arguments.slides) == 1 else 1)
    for n_spots, n_slides in zip(arguments.spots, slides, strict=True):
        command = [__file__, "one-fit", "--spots", str(n_spots), "--features", str(arguments.features)]
        rows.append(in_process([*command, "--slides", str(n_slides), "--method", arguments.method]))
        print(rows[-1], flush=True)
    table = show(rows)
    if len(rows) > 1:
        ends = table.iloc[[0, -1]]
        exponent = np.diff(np.log(ends["CPU s"]))[0] / np.diff(np.log(ends["spots"]))[0]
        print(f"CPU seconds grow with the number of spots to the power {exponent:.2f}")


def as_anndata(n_spots, n_features, n_slides):
    """Synthetic spots as a user has them."""
    import anndata as ad
    import numpy as np

    spots = synthetic(n_spots, n_features, n_slides)
    obs = {"donor": spots.donor, "library_id": np.array(spots.slides)[spots.slide]}
    found = ad.AnnData(spots.counts, obs=obs, obsm={"X_image": spots.features, "spatial": spots.xy})
    found.obs_names, found.var_names = spots.name, spots.genes
    return found


def folds(arguments):
    """A cross-validation in one process and in two."""
    import threading

    import pandas as pd
    import psutil
    import torch

    import stcontrast as stc
    from stcontrast.tl.cross_validation import _cross_validate as module
    from stcontrast.tl.cross_validation._parallel import LIBRARY_BYTES

    stc.settings.progress = False
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = as_anndata(arguments.spots[0], arguments.features, arguments.slides[0])
    rows, first, reckoned, run_fits = [], None, [], module.run_fits

    def watched(fits, n_processes, **kwargs):
        largest = sorted((fit.bytes_held for fit in fits), reverse=True)[:n_processes]
        reckoned.append(sum(largest) + LIBRARY_BYTES * n_processes)
        return run_fits(fits, n_processes, **kwargs)

    module.run_fits = watched
    for n_jobs in (1, 2):
        idle = 100 - psutil.cpu_percent(interval=5)
        me, done, peak = psutil.Process(), threading.Event(), [0]
        before = me.memory_full_info().pss

        def watch(me=me, done=done, peak=peak):
            while not done.wait(0.2):
                held = 0
                for process in (me, *me.children(recursive=True)):
                    try:
                        # what processes share is counted once
                        held += process.memory_full_info().pss
                    except psutil.Error:
                        continue
                peak[0] = max(peak[0], held)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        cv = stc.tl.cross_validate(
            data,
            donor_key="donor",
            library_key="library_id",
            use_rep="X_image",
            methods=arguments.methods,
            n_jobs=n_jobs,
        )
        wall = time.perf_counter() - start
        done.set()
        watcher.join()
        scores = cv.scores.reset_index(drop=True)
        first = scores if first is None else first
        rows.append({
            "processes": n_jobs, "idle before, %": idle, "wall s": wall, "times one": rows[0]["wall s"] / wall if rows else 1.0,
            "peak GiB above the data": (peak[0] - before) / 2**30, "reckoned GiB": reckoned[-1] / 2**30,
            "same scores": bool(pd.DataFrame.equals(scores, first)),
        })  # fmt: skip
        print(rows[-1], flush=True)
    show(rows)


def cluster(arguments):
    """Predictions into a store, here and on a dask cluster."""
    import signal
    import tempfile
    import threading

    import anndata as ad
    import numpy as np
    from dask.distributed import Client, LocalCluster

    import stcontrast as stc

    stc.settings.progress = False
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    model = stc.tl.fit(
        as_anndata(4000, arguments.features, 8), donor_key="donor", library_key="library_id", use_rep="X_image",
        method=arguments.method,
    )  # fmt: skip
    new, rows, first = as_anndata(arguments.spots[0], arguments.features, 1), [], None
    with tempfile.TemporaryDirectory() as folder:
        for where in ("this process", "2 workers", "2 workers, one killed"):
            path, start = Path(folder) / f"{where}.zarr", time.perf_counter()
            if where == "this process":
                stc.tl.predict_expression(new, model, library_key="library_id", store=path)
                peak = memory("VmHWM")
            else:
                with (
                    LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
                    Client(local) as client,
                ):
                    workers = [
                        client.run(os.getpid, workers=[name])[name] for name in client.scheduler_info()["workers"]
                    ]
                    if "killed" in where:
                        threading.Timer(rows[-1]["wall s"] / 2, os.kill, (workers[0], signal.SIGKILL)).start()
                    stc.tl.predict_expression(new, model, library_key="library_id", store=path)
                    peak = max(client.run(memory, "VmHWM").values())
            found = ad.read_zarr(path)
            first = found if first is None else first
            same = np.array_equal(found.X, first.X) and np.array_equal(
                found.layers["lower"], first.layers["lower"], equal_nan=True
            )
            rows.append({"where": where, "spots": len(new), "wall s": time.perf_counter() - start, "peak GiB": peak / 2**20,
                         "same": bool(same)})  # fmt: skip
            print(rows[-1], flush=True)
    show(rows)


ENCODED = """
import json, time
import numpy as np
import stcontrast as stc
encoder = stc.pp.TimmEncoder("resnet18", pretrained=False, size_px=224)
crops = np.random.default_rng(0).integers(0, 256, (256, 224, 224, 3), dtype=np.uint8)
encoder(crops[:64])
start = time.perf_counter()
for part in np.split(crops, 4):
    encoder(part)
print(json.dumps({"crops a second": len(crops) / (time.perf_counter() - start)}))
"""


def gpu(arguments):
    """Fits and an encoder, with and without the CUDA device."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device.")
    rows = []
    for device, seen in (("CPU", {"CUDA_VISIBLE_DEVICES": ""}), ("GPU", {})):
        row = {"device": device, **in_process(["-c", ENCODED], **seen)}
        for method in arguments.methods:
            command = [__file__, "one-fit", "--spots", str(arguments.spots[0]), "--method", method]
            row[f"{method}, s"] = in_process(command, **seen)["wall s"]
        rows.append(row)
        print(row, flush=True)
    show(rows)


def in_process(arguments, **environment):
    """What a process of its own, on one thread, prints last."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=os.environ | threads | environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def show(rows):
    """Print a table."""
    import pandas as pd

    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    return table


def main():
    parts = {
        "imports": imports,
        "fit": fit,
        "folds": folds,
        "cluster": cluster,
        "gpu": gpu,
        "one-fit": lambda given: one_fit(given.spots[0], given.features, given.method, given.slides[0]),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--spots", nargs="+", type=int, default=[2000, 10000, 40000])
    parser.add_argument("--slides", nargs="+", type=int, default=[2 * N_DONORS])
    parser.add_argument("--features", type=int, default=252)
    parser.add_argument("--method", default="stcontrast")
    parser.add_argument("--methods", nargs="+", default=["ridge", "kernel", "mean"])
    arguments = parser.parse_args()
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
