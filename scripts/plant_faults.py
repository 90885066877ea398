"""Plant one fault after another in a copy of the project, and see which the tests catch.

    python scripts/plant_faults.py [NUMBER ...]      # all faults, or those with these numbers

A fault is a replacement of some text in one file, together with the tests that should fail. Prints a line for each fault,
and how many were caught; ends with status 1 where one was not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = "src/stcontrast/"
# what is wrong, file, text, replacement, tests
FAULTS = (
    (
        "a method sees the depth of spots that it predicts", "_data/spots.py",
        'return type(self).of(self.slide, self.xy, **known, **({"depth": self.depth} if depth else {}))',
        "return type(self).of(self.slide, self.xy, **known, depth=self.depth)",
        "tests/spots tests/methods/baselines/test_depth.py",
    ),
    (
        "held-out spots take part in the targets of their fold", "_data/folds.py",
        "target[self.train], label[self.train] = made.target, made.label",
        "made = make(self.spots); target[self.train], label[self.train] = made.target[self.train], made.label[self.train]",
        "tests/spots tests/methods",
    ),
    (
        "unmeasured spots of a held-out donor are trained on", "_data/folds.py",
        "train = np.flatnonzero(~np.isin(group, group[held_out]))",
        "train = np.setdiff1d(np.arange(len(group)), held_out)",
        "tests/spots",
    ),
    (
        "the worst value of the grid is chosen", "methods/_base.py",
        "if score > best:\n                best, found.expression", "if -score > best:\n                best, found.expression",
        "tests/methods/baselines",
    ),
    (
        "choosing on folds forgets the final fit", "methods/_base.py",
        "                for name in of_classes if len(rows) else ():\n                    setattr(self, name, value)\n        self.fit_parts(spots)",
        "                for name in of_classes if len(rows) else ():\n                    setattr(self, name, value)",
        "tests/methods/baselines",
    ),
    (
        "denoised targets keep the unit of standardised genes", "methods/_targets.py",
        "(low_rank * scale + of_slide[rows])", "(low_rank + of_slide[rows])", "tests/spots",
    ),
    (
        "pseudo-labels replace given labels", "methods/_targets.py",
        "label = np.where(spots.label >= 0, spots.label, guess)", "label = np.asarray(guess)", "tests/methods",
    ),
    (
        "the plain baseline learns denoised targets in the final fit", "methods/stcontrast/_method.py",
        'member.fit(spots, folds) if name == "ridge" else', 'member.fit(learnt, learnt_folds) if name == "ridge" else',
        "tests/methods/stcontrast",
    ),
    (
        "predictions are not drawn by the calibration slope", "methods/stcontrast/_method.py",
        "return self._sloped(mixed(self.weights, parts))", "return mixed(self.weights, parts)", "tests/methods/stcontrast",
    ),
    (
        "the latest epoch is taken, not the median", "methods/_network.py",
        "return found, int(np.median(epochs))", "return found, int(np.max(epochs))", "tests/methods",
    ),
    (
        "a gene counts by its denoised deviation", "methods/_network.py",
        "train.observed - train.slide_means(train.observed)[1]", "train.target - train.slide_means(train.target)[1]",
        "tests/methods",
    ),
    (
        "the gene latent sees a spot alone", "methods/_gene_latent.py",
        "max_epochs=self.max_epochs, slide_key=SLIDE,", "max_epochs=self.max_epochs,",
        "tests/methods tests/tl/test_embed_genes.py",
    ),
    (
        "a saved list of networks is not restored", "methods/_state.py",
        "        for name, item in items.items():\n            item.restore(state[str(name)])\n", "",
        "tests/methods/stcontrast tests/fitted",
    ),
    (
        "any format of a saved model is read", "fitted/_disk.py",
        "    if found != FORMAT:\n        _refuse(folder, found, spec)\n", "", "tests/fitted",
    ),
    (
        "half of the training spots count as out of distribution", "fitted/_calibration.py",
        "QUANTILE: Final = 0.99", "QUANTILE: Final = 0.5", "tests/fitted",
    ),
    (
        "genes are chosen on test donors too", "fitted/_fit.py",
        "return train.with_genes(_columns(train, fit_spec))",
        "return train.with_genes(_columns(spots.with_classes(train.classes), fit_spec))",
        "tests/tl/test_no_leak.py tests/tl/cross_validation",
    ),
    (
        "the batch is the slide where only the donor is named", "_data/gather.py",
        "keys.batch_key or keys.donor_key", "keys.batch_key", "tests/spots",
    ),
    (
        "depth is counted over the shared genes", "_data/gather.py",
        "depth.append(np.asarray(full.sum(axis=1), dtype=np.float64).ravel())",
        "depth.append(np.asarray(counts[-1].sum(axis=1), dtype=np.float64).ravel())", "tests/spots",
    ),
    (
        "a list of one AnnData gives no list back", "tl/_predict_expression.py",
        "return returned if isinstance(data, Sequence) else returned[0]", "return returned if len(returned) > 1 else returned[0]", "tests/tl/test_predict_expression.py",
    ),
    (
        "a predicted expression may be negative", "fitted/_model.py",
        "found.expression = np.maximum(self.method.predict_expression(spots), 0.0)",
        "found.expression = self.method.predict_expression(spots)", "tests/fitted",
    ),
    (
        "arrays of another shape have the same hash", "_files.py",
        'f"{part.dtype.str} {part.shape}"', 'f"{part.dtype.str}"', "tests/test_files.py",
    ),
    (
        "a slide's spots are mixed with those of the next", "_slides.py",
        "return [rows[of_row == code] for code in np.unique(of_row)]",
        "return [rows[of_row >= code] for code in np.unique(of_row)]", "tests/spots tests/metrics",
    ),
)  # fmt: skip


def caught(copy: Path, path: str, before: str, after: str, tests: str) -> bool:
    """Whether the tests fail with the fault."""
    file = copy / SRC / path
    text = file.read_text()
    if text.count(before) != 1:
        msg = f"{path} holds the text {text.count(before)} times, once was expected: {before!r}"
        raise ValueError(msg)
    file.write_text(text.replace(before, after))
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", str(os.cpu_count()),
        "-m", "not slow and not network and not gpu", *tests.split(),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    file.write_text(text)
    if done.returncode not in (0, 1, 2):
        msg = f"pytest could not run {tests!r}: {done.stdout[-2000:]}"
        raise RuntimeError(msg)
    return done.returncode != 0


def main() -> int:
    """Plant all faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int)
    numbers = parser.parse_args().numbers or range(1, len(FAULTS) + 1)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "_build", "demo-output", "__pycache__"))
        for number in numbers:
            what, *fault = FAULTS[number - 1]
            start = time.monotonic()
            found.append(caught(copy, *fault))
            print(
                f"{number:3d} {'caught' if found[-1] else 'MISSED':7s} {time.monotonic() - start:4.0f} s  {what}",
                flush=True,
            )
    print(f"{sum(found)} of {len(found)} caught")
    return int(not all(found))


if __name__ == "__main__":
    raise SystemExit(main())
