"""What a stranger's model folder can do: nothing but be refused.

    python benchmarks/foreign.py [--folders 10000]

Saves the default model and a BatchAgnosticVAE, mutates copies of their folders (cut, flipped, swapped, renamed, huge,
links, pipes, pickles, addresses), loads each, and counts: refused by an error of the package; accepted with the same
content; accepted with other content (wrong); other errors; code run; addresses asked; and the largest memory of a load
beyond what was there before, as a share of what the folder takes on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import socket
import sys
import tempfile
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np


class Evil:
    """Leaves a file where it is unpickled."""

    marker = ""

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def mutate(folder: Path, other: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change one thing in a folder; returns what."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    file = files[rng.integers(len(files))]
    kind = str(rng.choice(KINDS))
    content = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(bytes(content[: rng.integers(len(content))]))
    elif kind == "flipped":
        for _ in range(rng.integers(1, 5)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(content))
    elif kind == "swapped":
        shutil.copy(other / file.name, file) if (other / file.name).exists() else file.unlink()
    elif kind == "renamed":
        file.rename(file.with_name(files[rng.integers(len(files))].name + ("x" if rng.random() < 0.5 else "")))
    elif kind == "huge":
        with file.open("rb+") as opened:
            opened.truncate(2**33)
    elif kind == "link":
        file.unlink()
        file.symlink_to(["/dev/zero", "/dev/urandom", "/etc/passwd", "nowhere", str(folder)][rng.integers(5)])
    elif kind == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif kind == "pickle":
        Evil.marker = str(marker)
        file.write_bytes(pickle.dumps(Evil()))
    elif kind == "junk":
        file.write_bytes(rng.bytes(int(rng.integers(1, 5000))))
    elif kind == "deep":
        file.write_text("[" * 10**5)
    else:
        rehashed(folder, kind, rng)
    return kind


def rehashed(folder: Path, kind: str, rng: np.random.Generator) -> None:
    """A change of the spec by somebody who knows the format and makes its hash anew."""
    from stcontrast._files import content_hash

    file = folder / "model.json"
    if not file.exists():
        return
    head = json.loads(file.read_text())
    spec = head["spec"]
    if kind == "address":
        encoder = {
            "kind": "timm", "name": ["hf-hub:evil/model", "local-dir:/etc", "resnet18", "http://evil.example/x"][rng.integers(4)],
            "pretrained": True, "weights": ["", "/etc/passwd", "//evil.example/share"][rng.integers(3)], "sha256": "",
            "size_px": 64, "seed": 0, "mean": [0.5] * 3, "std": [0.5] * 3,
            "model_args": json.dumps([{}, {"pretrained_cfg": {"url": "http://evil.example/x"}}, {"checkpoint_path": "/x"}][rng.integers(3)]),
        }  # fmt: skip
        spec["image_features"][0]["encoder"] = encoder
    elif kind == "huge spec":
        name = str(rng.choice(["n_neighbors", "blocks", "method_spec", "genes", "seed", "method", "classes"]))
        spec[name] = [10**9, [10**9], {"n_coordinates": 10**9}, {"max_epochs": 1e300}, "x" * 10**6, -1, None][
            rng.integers(7)
        ]
    del head["sha256"]
    file.write_text(json.dumps(head | {"sha256": content_hash([head])}))


KINDS = [
    "cut", "flipped", "swapped", "renamed", "huge", "link", "pipe", "pickle", "junk", "deep", "address", "huge spec",
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=10_000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import stcontrast as stc

    stc.settings.progress = False
    asked = []

    def connect(self, address):
        asked.append(address)
        msg = "no network here"
        raise OSError(msg)

    sdata = stc.datasets.toy(n_donors=2, n_spots=60, n_genes=40)
    new = stc.datasets.toy(n_donors=1, n_spots=20, n_genes=40, seed=1)
    counts: Counter = Counter()
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for i, seed in enumerate((0, 1)):
            fitted = stc.tl.fit(
                sdata, batch_key="donor", label_key="subtype", seed=seed,
                options={"gene_space": "vae", "vae_epochs": 1, "max_epochs": 1},
            )  # fmt: skip
            fitted.save(root / f"model{i}")
            vae = stc.models.BatchAgnosticVAE
            table = sdata["table"].copy()
            vae.setup_anndata(table, batch_key="donor")
            trained = vae(table, n_latent=4 + i)
            trained.train(max_epochs=1, enable_progress_bar=False)
            trained.save(str(root / f"vae{i}"))
        stc.pp.image_features(new)
        stc.tl.predict_expression(new, stc.models.load(root / "model0"), key_added="right")
        right = np.asarray(new["right"].X)
        latent = stc.models.BatchAgnosticVAE.load(root / "vae0").get_latent_representation(sdata["table"])
        size = sum(path.stat().st_size for path in (root / "model0").iterdir())
        socket.socket.connect = connect
        tracemalloc.start()
        rng = np.random.default_rng(0)
        marker = root / "code was run"
        for i in range(arguments.folders):
            what = "vae" if i % 4 == 0 else "model"
            folder = root / "mutated"
            shutil.copytree(root / f"{what}0", folder)
            kind = mutate(folder, root / f"{what}1", rng, marker)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                if what == "model":
                    model = stc.models.load(folder)
                    del new.tables["right"]
                    if kind == "address":
                        del new["table"].obsm["X_image"]
                        del new["table"].uns["stcontrast"]["image_features"]
                    try:
                        stc.tl.predict_expression(new, model, key_added="right")
                    finally:
                        if kind == "address":
                            stc.pp.image_features(new)
                            new.tables.setdefault("right", new["table"].copy())
                    same = np.allclose(new["right"].X, right, atol=1e-5)
                else:
                    loaded = stc.models.BatchAgnosticVAE.load(folder)
                    same = np.allclose(loaded.get_latent_representation(sdata["table"]), latent, atol=1e-5)
                outcome = "accepted, same" if same else "WRONG"
            except (ValueError, FileNotFoundError, ConnectionError):
                outcome = "refused"
            except Exception as error:  # noqa: BLE001
                outcome = "OTHER ERROR"
                print(what, kind, type(error).__name__, str(error)[:200], file=sys.stderr)
            if outcome == "WRONG":
                print(what, kind, "accepted with other content", file=sys.stderr)
            if what == "model" and kind not in ("address",) and outcome == "refused":
                # of what lies on the disk: a huge file is sparse
                there = sum(512 * path.lstat().st_blocks for path in folder.iterdir())
                worst = max(worst, (tracemalloc.get_traced_memory()[1] - before) / max(size, there))
            counts[what, kind, outcome] += 1
            shutil.rmtree(folder)
        print(f"code run: {int(marker.exists())}; addresses asked: {len(asked)}")
        print(f"memory of a refused load: at most {worst:.2f} of the model's size")
    table: dict = {}
    for (what, kind, outcome), n in counts.items():
        table.setdefault((what, kind), Counter())[outcome] = n
    import pandas as pd

    print(pd.DataFrame(table).T.fillna(0).astype(int).sort_index().to_string())


if __name__ == "__main__":
    main()
