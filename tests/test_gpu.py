"""A CUDA device does what the CPU does: ``pytest -m gpu`` on a machine that has one.

Fits run in processes of their own, one that sees the device and one that does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import stcontrast as stc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FIT = """
import sys
import numpy as np, torch
import stcontrast as stc

folder, method, how = sys.argv[1:]
stc.settings.progress = False
train, new = (stc.datasets.toy(n_donors=n, n_spots=80, n_genes=60, seed=seed) for n, seed in ((3, 0), (1, 9)))
given = {"options": {"fast": True}} if method in {"mclstexp", "nh2st"} else {}
if how == "fine-tuned":
    encoder = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=32)
    given |= {"image_tower": "finetune", "encoder": encoder, "field_um": 100, "tower_options": {"epochs": 2}}
if how == "loaded":
    model = stc.models.load(f"{folder}/model")
else:
    model = stc.tl.fit(train, batch_key="donor", label_key="subtype", method=method, **given)
    model.save(f"{folder}/model", overwrite=True)
stc.tl.predict_expression(new, model)
counts = new["table"][:, model.genes].X.toarray()
depth = new["table"].X.sum(axis=1)
truth = np.log1p(1e4 * counts / np.asarray(depth).reshape(-1, 1))
r = stc.metrics.gene_correlation(new["stc_pred"].X, truth)
used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
np.savez(f"{folder}/found.npz", predicted=new["stc_pred"].X, r=np.nanmean(r), used=used)
"""


def fitted(folder: Path, method: str, how: str, *, gpu: bool) -> dict[str, NDArray[np.float32]]:
    """What a process finds that sees the device, or does not."""
    environment = os.environ | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    subprocess.run([sys.executable, "-c", FIT, str(folder), method, how], check=True, env=environment, timeout=600)
    with np.load(folder / "found.npz") as found:
        return dict(found)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("stcontrast", "frozen"),
        ("mclstexp", "frozen"),
        ("nh2st", "frozen"),
        ("tpirbae", "frozen"),
        ("ridge", "fine-tuned"),
    ],
)
def test_a_fit_uses_the_device_and_predicts_as_well(method: str, how: str, tmp_path: Path) -> None:
    on_cpu = fitted(tmp_path, method, how, gpu=False)
    on_gpu = fitted(tmp_path, method, how, gpu=True)
    assert on_gpu["used"] > 0
    assert on_cpu["used"] == 0
    assert np.isfinite(on_gpu["predicted"]).all()
    # random numbers of the device are others: networks end elsewhere
    assert on_gpu["r"] == pytest.approx(on_cpu["r"], abs=0.1)
    # a model of the device predicts the same without one
    loaded = fitted(tmp_path, method, "loaded", gpu=False)
    np.testing.assert_allclose(loaded["predicted"], on_gpu["predicted"], atol=2e-2)


@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-3), (None, 3e-2)])
def test_an_encoder_gives_the_features_of_the_cpu(precision: str | None, atol: float) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    expected, found = (
        stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=32, device=device, precision=given)(crops)
        for device, given in (("cpu", "float32"), ("cuda", precision))
    )
    np.testing.assert_allclose(found, expected, atol=atol * np.abs(expected).max())
