"""What a kill costs: SIGKILL at random moments of a save, a prediction into a store, a cross-validation, and features.

    python benchmarks/faults.py [--kills 200] [--parts model store cross_validate features]

The work runs in a process of its own that is killed again and again. After every kill: is what was there before still
there (lost), is something half taken for whole (half accepted), and does the same call finish the work with the result
of a run that was never killed (resumed). Prints a row a part; all but the last column must be 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

WORK = {
    "model": """
model = stc.models.load(folder / "start")
for i in range(10**6):
    model.spec["held_out_r"] = float(i)
    model.save(folder / "model", overwrite=True)
    print("again", flush=True)
""",
    "store": """
import shutil
model = stc.models.load(folder / "start")
for i in range(10**6):
    sdata = stc.datasets.toy(n_donors=1, n_spots=3000, n_genes=20, seed=1)
    if i:
        shutil.rmtree(folder / "store.zarr")
    print("again", flush=True)
    stc.tl.predict_expression(sdata, model, store=folder / "store.zarr")
""",
    "cross_validate": """
for i in range(10**6):
    sdata = stc.datasets.toy(n_donors=4, n_spots=60, n_genes=20)
    print("again", flush=True)
    stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "knn", "mean"], directory=folder / f"fits{i}", n_jobs=1)
""",
    "features": """
for i in range(10**6):
    sdata = stc.datasets.toy(n_donors=1, n_spots=300, n_genes=20)
    sdata.write(folder / f"features{i}.zarr")
    print("again", flush=True)
    stc.pp.image_features(sdata, encoder="color")
    sdata.write_element("table", overwrite=True)
""",
}
# imports once, and forks a process for each kill
WORKER = """
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import spatialdata, torch
import stcontrast as stc
stc.pp, stc.tl, stc.models, stc.datasets
stc.settings.progress = False
folder = Path(sys.argv[1])
for work in iter(sys.stdin.readline, ""):
    process = os.fork()
    if process == 0:
        exec(eval(work))
        os._exit(0)
    print(process, flush=True)
    os.waitpid(process, 0)
    print("ended", flush=True)
"""


def killed(worker: subprocess.Popen[str], part: str, delay: float) -> None:
    """Start the work, wait until it works, and kill it."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(repr(WORK[part]) + "\n")
    worker.stdin.flush()
    lines = []
    while "again" not in lines:
        lines.append(worker.stdout.readline().strip())
        assert lines[-1] != "ended", f"the work of {part!r} failed"
    process = next(int(line) for line in lines if line.isdigit())
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    while worker.stdout.readline().strip() != "ended":
        pass


def look(part: str, folder: Path, reference) -> dict[str, int]:
    """What is there after a kill, and whether the same call finishes it."""
    import anndata as ad

    import stcontrast as stc

    found = {"lost": 0, "half accepted": 0, "not resumed": 0}
    if part == "model":
        try:
            model = stc.models.load(folder / "model")
        except FileNotFoundError:
            return found | {"lost": 1}
        except ValueError:
            return found | {"half accepted": 0, "lost": 1}
        model.save(folder / "model", overwrite=True)
        leftover = [path for path in folder.iterdir() if path.name.startswith(".model.")]
        found["not resumed"] = int(len(leftover) > 1)
    elif part == "store":
        path = folder / "store.zarr"
        if path.exists():
            values = np.asarray(ad.read_zarr(path).X)
            found["half accepted"] = int(not np.allclose(values, reference, atol=1e-5))
            import shutil

            shutil.rmtree(path)
        sdata = stc.datasets.toy(n_donors=1, n_spots=3000, n_genes=20, seed=1)
        stc.tl.predict_expression(sdata, stc.models.load(folder / "start"), store=path)
        found["not resumed"] = int(not np.allclose(np.asarray(ad.read_zarr(path).X), reference, atol=1e-5))
    elif part == "cross_validate":
        sdata = stc.datasets.toy(n_donors=4, n_spots=60, n_genes=20)
        cv = stc.tl.cross_validate(
            sdata, donor_key="donor", methods=["ridge", "knn", "mean"], directory=folder / "fits0", n_jobs=1
        )
        found["not resumed"] = int(not np.allclose(cv.summary()["pearson"], reference, atol=1e-6, equal_nan=True))
    else:
        import spatialdata as sd

        for path in folder.glob("features*.zarr"):
            try:
                table = sd.read_zarr(path)["table"]
            except Exception:  # noqa: BLE001
                # not ours: `SpatialData.write` and `write_element` were killed
                continue
            if "X_image" in table.obsm:
                features = np.asarray(table.obsm["X_image"])
                found["half accepted"] = int(not np.allclose(features, reference, atol=1e-5))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=WORK, default=list(WORK))
    arguments = parser.parse_args()
    import shutil
    import warnings

    warnings.simplefilter("ignore")
    import stcontrast as stc

    stc.settings.progress = False
    longest = {"model": 0.3, "store": 3.0, "cross_validate": 3.0, "features": 1.5}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = stc.datasets.toy(n_donors=2, n_spots=60, n_genes=20)
        stc.tl.fit(train, batch_key="donor", method="ridge").save(folder / "start")
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        for part in arguments.parts:
            reference = None
            if part == "store":
                sdata = stc.datasets.toy(n_donors=1, n_spots=3000, n_genes=20, seed=1)
                stc.tl.predict_expression(sdata, stc.models.load(folder / "start"))
                reference = sdata["stc_pred"].X
            elif part == "cross_validate":
                sdata = stc.datasets.toy(n_donors=4, n_spots=60, n_genes=20)
                reference = stc.tl.cross_validate(sdata, donor_key="donor", methods=["ridge", "knn", "mean"]).summary()[
                    "pearson"
                ]
            elif part == "features":
                sdata = stc.datasets.toy(n_donors=1, n_spots=300, n_genes=20)
                stc.pp.image_features(sdata, encoder="color")
                reference = sdata["table"].obsm["X_image"]
            rng = np.random.default_rng(0)
            total = {"lost": 0, "half accepted": 0, "not resumed": 0}
            for i in range(arguments.kills):
                killed(worker, part, rng.uniform(0, longest[part]))
                for kind, count in look(part, folder, reference).items():
                    total[kind] += count
                for path in [*folder.glob("fits*"), *folder.glob("features*")]:
                    shutil.rmtree(path)
                print(f"\r{part}: {i + 1} of {arguments.kills} {total}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            rows.append({"part": part, "kills": arguments.kills, **total})
        worker.kill()
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
