"""The memory that decides on the number of processes, against that of real fits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stcontrast.tl.cross_validation._parallel import LIBRARY_BYTES

# synthetic spots of four donors; the peak of the process is forgotten before the fit (Linux)
ONE_FIT = """
import json, sys
from pathlib import Path
import numpy as np
from scipy import sparse
from stcontrast.methods import Spots
from stcontrast.fitted._fit import FitSpec
from stcontrast.tl.cross_validation._fits import Fit, fit_and_predict

N_GENES = 1000

def memory(what):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[what].split()[0])

def one(method, n_spots, n_features):
    rng = np.random.default_rng(0)
    slide = np.sort(np.arange(n_spots) % 8)
    place = np.arange(n_spots) - np.searchsorted(slide, slide)
    features = np.empty((n_spots, n_features), dtype=np.float32)
    parts = []
    # in small parts: nothing that is freed may hide what the fit takes
    for start in range(0, n_spots, 100):
        n = min(100, n_spots - start)
        features[start : start + n] = rng.normal(size=(n, n_features))
        parts.append(sparse.csr_matrix(rng.poisson(np.exp(features[start : start + n, :1])
                                                   * np.ones(N_GENES)).astype(np.float32)))
    counts = sparse.csr_matrix(sparse.vstack(parts))
    donor = np.array([f"donor{i // 2}" for i in range(8)])[slide]
    spots = Spots.of(
        slide.astype(np.int64), np.column_stack([place % 40, place // 40]).astype(float), features=features, counts=counts,
        donor=donor, batch=donor, depth=np.asarray(counts.sum(axis=1)).ravel().astype(float),
        slides=[f"slide{i}" for i in range(8)], genes=[f"gene{i}" for i in range(N_GENES)],
        name=np.arange(n_spots).astype(str),
    )
    made_by = [{"slot": "X_image", "encoder": {"kind": "given", "name": "synthetic", "n_features": n_features},
                "field_um": [], "n_features": n_features}]
    held_out = donor == "donor3"
    return Fit(method, method, FitSpec(n_genes=N_GENES), spots, features, made_by, np.flatnonzero(~held_out),
               np.flatnonzero(held_out))

method, n_spots, n_features = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fit_and_predict(one(method, 400, n_features))
libraries = memory("VmRSS")
fit = one(method, n_spots, n_features)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
fit_and_predict(fit)
print(json.dumps({"libraries": libraries, "held": memory("VmHWM") - before, "estimate": fit.bytes_held}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is that of /proc")
@pytest.mark.parametrize(
    ("method", "n_spots", "n_features"), [("mean", 16_000, 252), ("mean", 16_000, 1536), ("ridge", 16_000, 252)]
)
def test_the_memory_of_a_fit_is_known_before(method: str, n_spots: int, n_features: int) -> None:
    command = [sys.executable, "-c", ONE_FIT, method, str(n_spots), str(n_features)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    # what an allocator keeps differs between machines
    assert found["held"] == pytest.approx(found["estimate"], rel=0.35)
    assert found["libraries"] + found["held"] == pytest.approx(LIBRARY_BYTES + found["estimate"], rel=0.3)
