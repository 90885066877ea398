"""What a kill costs: SIGKILL at random moments of a save, a prediction into a store, a cross-validation, and features.

    python benchmarks/faults.py [--kills 200] [--parts model store cross_validate features]

The work runs in a process of its own that is killed again and again. After every kill: is what was there before still
there (lost), is something half taken for whole (half accepted), and does the same call finish the work with the result
of a run that was never killed (resumed). Prints a row a part; all but the last column must be 0.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext

TOY: dict[str, dict[str, int]] = {
    "store": {"n_donors": 1, "n_spots": 1000, "n_genes": 20, "seed": 1},
    "cross_validate": {"n_donors": 4, "n_spots": 60, "n_genes": 20},
    "features": {"n_donors": 1, "n_spots": 300, "n_genes": 20},
}
CV = {"donor_key": "donor", "methods": ["ridge", "knn", "mean"], "n_jobs": 1}
# kills fall between 0 and so many seconds after the work has begun
LONGEST = {"model": 0.3, "store": 2.0, "cross_validate": 2.0, "features": 1.0}


def work(part: str, folder: Path, i: int) -> None:
    """What is killed, in its `i`-th round."""
    import spatialdata as sd

    import stcontrast as stc

    if part == "model":
        model = stc.models.load(folder / "start")
        model.spec["held_out_r"] = float(i)
        model.save(folder / "model", overwrite=True)
        return
    sdata = sd.read_zarr(folder / "input")
    if part == "store":
        shutil.rmtree(folder / "moved", ignore_errors=True)
        if i:
            (folder / "store.zarr").rename(folder / "moved")
        stc.tl.predict_expression(sdata, stc.models.load(folder / "start"), store=folder / "store.zarr")
    elif part == "cross_validate":
        stc.tl.cross_validate(sdata, directory=folder / f"fits{i}", **CV)
    else:
        sdata.write(folder / f"features{i}.zarr")
        stc.pp.image_features(sdata, encoder="color")
        sdata.write_element("table", overwrite=True)


def reference(part: str, folder: Path) -> np.ndarray | None:
    """The result of the work when it is not killed."""
    import spatialdata as sd

    import stcontrast as stc

    if part == "model":
        stc.models.load(folder / "start").save(folder / "model")
        return None
    shutil.rmtree(folder / "input", ignore_errors=True)
    stc.datasets.toy(**TOY[part]).write(folder / "input")
    sdata = sd.read_zarr(folder / "input")
    if part == "store":
        stc.tl.predict_expression(sdata, stc.models.load(folder / "start"))
        return np.asarray(sdata["stc_pred"].X)
    if part == "cross_validate":
        return stc.tl.cross_validate(sdata, **CV).summary()["pearson"].to_numpy()
    stc.pp.image_features(sdata, encoder="color")
    return np.asarray(sdata["table"].obsm["X_image"])


# imported once; every process that is killed is a fork of the process that imported them
PRELOADED = ["torch", "spatialdata", "stcontrast.datasets", "stcontrast.models", "stcontrast.pp", "stcontrast.tl"]


def working(part: str, folder: Path, started: Connection) -> None:
    """Work on and on."""
    import warnings

    import stcontrast as stc

    warnings.simplefilter("ignore")
    stc.settings.progress = False
    for i in itertools.count():
        if i == 0:
            started.send(i)
        work(part, folder, i)


def killed(context: ForkServerContext, part: str, folder: Path, delay: float) -> None:
    """Start the work, wait until it works, and kill it."""
    here, there = context.Pipe()
    process = context.Process(target=working, args=(part, folder, there), daemon=True)
    process.start()
    here.recv()
    time.sleep(delay)
    assert process.is_alive(), "the work failed"
    process.kill()
    process.join()


def look(part: str, folder: Path, expected: np.ndarray | None) -> dict[str, int]:
    """What is there after a kill, and whether the same call finishes it."""
    import anndata as ad
    import spatialdata as sd

    import stcontrast as stc

    found = {"lost": 0, "half accepted": 0, "not resumed": 0}
    if part == "model":
        try:
            model = stc.models.load(folder / "model")
        except (FileNotFoundError, ValueError):
            return found | {"lost": 1}
        model.save(folder / "model", overwrite=True)
        # a folder without a lock may be one that another process just makes: it is removed when it is older
        before = time.time() - 5
        left = [path for path in folder.iterdir() if path.name.startswith(".model.") and path.stat().st_mtime < before]
        return found | {"not resumed": len(left)}
    sdata = sd.read_zarr(folder / "input")
    if part == "store":
        path = folder / "store.zarr"
        if path.exists():
            found["half accepted"] = int(not np.allclose(ad.read_zarr(path).X, expected, atol=1e-5))
            shutil.rmtree(path)
        stc.tl.predict_expression(sdata, stc.models.load(folder / "start"), store=path)
        found["not resumed"] = int(not np.allclose(ad.read_zarr(path).X, expected, atol=1e-5))
    elif part == "cross_validate":
        cv = stc.tl.cross_validate(sdata, directory=folder / "fits0", **CV)
        found["not resumed"] = int(not np.allclose(cv.summary()["pearson"], expected, atol=1e-6, equal_nan=True))
    else:
        for path in folder.glob("features*.zarr"):
            try:
                table = sd.read_zarr(path)["table"]
            except Exception:  # noqa: BLE001
                # not ours: `SpatialData.write` and `write_element` were killed
                continue
            if "X_image" in table.obsm:
                found["half accepted"] = int(not np.allclose(table.obsm["X_image"], expected, atol=1e-5))
        stc.pp.image_features(sdata, encoder="color")
        found["not resumed"] = int(not np.allclose(sdata["table"].obsm["X_image"], expected, atol=1e-5))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=LONGEST, default=list(LONGEST))
    arguments = parser.parse_args()
    import warnings

    warnings.simplefilter("ignore")
    import stcontrast as stc

    stc.settings.progress = False
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = stc.datasets.toy(n_donors=2, n_spots=60, n_genes=20)
        stc.tl.fit(train, batch_key="donor", method="ridge").save(folder / "start")
        for part in arguments.parts:
            expected = reference(part, folder)
            rng = np.random.default_rng(0)
            total = {"lost": 0, "half accepted": 0, "not resumed": 0}
            for i in range(arguments.kills):
                killed(context, part, folder, rng.uniform(0, LONGEST[part]))
                for kind, count in look(part, folder, expected).items():
                    total[kind] += count
                for path in [*folder.glob("fits*"), *folder.glob("features*"), *folder.glob("store.zarr")]:
                    shutil.rmtree(path)
                print(f"\r{part}: {i + 1} of {arguments.kills} {total}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            rows.append({"part": part, "kills": arguments.kills, **total})
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
