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
        "the donor with the most spots sets the axes", "_genespace/_principal.py",
        "of_donor += (here.T @ here) / int((spots.measured & (spots.donor == donor)).sum())", "of_donor += here.T @ here",
        "tests/genespace/test_principal.py",
    ),
    (
        "a slide's level is taken for a signal", "_genespace/_principal.py",
        "centered = spots.target[rows] - means[-1]", "centered = spots.target[rows] - means[0]",
        "tests/genespace/test_principal.py",
    ),
    (
        "the gene latent sees a spot alone", "_genespace/_vae.py",
        "max_epochs=self.max_epochs, slide_key=SLIDE, seed=self.seed,", "max_epochs=self.max_epochs, seed=self.seed,",
        "tests/genespace tests/tl/test_embed_genes.py",
    ),
    (
        "a held-out donor stays on the gene side", "_data/folds.py",
        'return train.without_donors(self.spots.donor[self.held_out]) if self.unit == "donor" else train', "return train",
        "tests/spots/test_folds.py tests/methods/stcontrast",
    ),
    (
        "genes without an image teach nothing", "methods/stcontrast/_image_to_gene.py",
        "self.space.fit(spots.with_counts())", "self.space.fit(spots)", "tests/methods/stcontrast/test_image_to_gene.py",
    ),
    (
        "expression has the level of the gene side", "methods/stcontrast/_image_to_gene.py",
        "expression += self.level - self.reference", "expression += 0",
        "tests/methods/stcontrast/test_image_to_gene.py",
    ),
    (
        "held-out spots weigh their own predictions", "methods/stcontrast/_method.py",
        "weights = stacked.found(n_donors=n_donors, without=i)", "weights = stacked.found(n_donors=n_donors)",
        "tests/methods/stcontrast/test_method.py",
    ),
    (
        "a fold learns from all spots", "methods/stcontrast/_method.py",
        "part.fit(fold.training, overwrite_design=True)", "part.fit(fold.spots)", "tests/methods/stcontrast/test_method.py",
    ),
    (
        "classifiers see an embedding that has learnt from the spot", "methods/stcontrast/_method.py",
        "            embedding[fold.held_out] = of_part[fold.held_out] @ rotation\n", "",
        "tests/methods/stcontrast/test_method.py",
    ),
    (
        "a fold's features are those of the encoder of all spots", "methods/stcontrast/_method.py",
        "of_part = part.embed_image(fold.spots)", "of_part = part.embed_image(spots)",
        "tests/methods/stcontrast/test_method.py",
    ),
    (
        "predictions are not drawn by the calibration slope", "methods/stcontrast/_method.py",
        "        return _sloped(expression, self.parts.level, self.slope)", "        return expression",
        "tests/methods/stcontrast/test_method.py",
    ),
    (
        "the weights of two donors are those of their data", "methods/stcontrast/_stacking.py",
        "if n_donors < FEWEST_DONORS or not sums:", "if not sums:", "tests/methods/stcontrast",
    ),
    (
        "given labels are replaced in self-training", "methods/stcontrast/_subtypes.py",
        "return np.where(known, label, mixed(self.weights, self._each(used)).argmax(axis=1))",
        "return mixed(self.weights, self._each(used)).argmax(axis=1)",
        "tests/methods/stcontrast/test_subtypes.py",
    ),
    (
        "the weights of the last epoch are kept, not their mean", "_models/contrastive/training.py",
        "self.module.load_state_dict(self.averaged[0].module.state_dict())", "pass", "tests/models/contrastive",
    ),
    (
        "spots of several slides are compared", "_models/contrastive/model.py",
        "slides = [torch.where(table.slide == code)[0] for code in torch.unique(table.slide)]",
        "slides = [torch.arange(len(table))]", "tests/models/contrastive",
    ),
    (
        "the targets of a contrast are learnt too", "nn/_losses.py",
        "    similar = functional.normalize(targets_from.detach(), dim=1)", "    similar = functional.normalize(targets_from, dim=1)",
        "tests/nn/test_losses.py",
    ),
    (
        "chance of the sigmoid loss is that of the others", "nn/_pairs.py",
        'torch.xlogy(n, n) - torch.xlogy(n - 1, n - 1) if self.loss == "sigmoid" else n.log()', "n.log()",
        "tests/nn/test_pairs.py",
    ),
    (
        "of equally similar rows any", "methods/_retrieval.py",
        "chosen = _smallest(-cosine, k)",
        "chosen = np.argsort(-cosine, axis=1)[:, :k]",
        "tests/methods/test_retrieval.py",
    ),
    (
        "a saved part is not restored", "_state.py",
        "    if isinstance(before, Learns):\n        before.restore(state)\n        return before\n",
        "    if isinstance(before, Learns):\n        return before\n", "tests/methods/stcontrast tests/fitted",
    ),
    (
        "files of another model are read", "_files/model_folder.py",
        "            if file_sha256(folder / name) != expected.sha256:", "            if not expected.sha256:",
        "tests/test_model_folder.py",
    ),
    (
        "a folder with things of the user is replaced", "_files/model_folder.py",
        "    if other := sorted(there - ours):", "    if other := sorted(set() - ours):", "tests/test_model_folder.py",
    ),
    (
        "what a killed save moved aside is not put back", "_files/whole.py",
        "                        (folder / OLD).rename(path)\n", "                        pass\n",
        "tests/test_model_folder.py",
    ),
    (
        "half of the training spots count as out of distribution", "fitted/_calibration.py",
        "QUANTILE: Final = 0.99", "QUANTILE: Final = 0.5", "tests/fitted",
    ),
    (
        "genes are chosen on test donors too", "fitted/_fit.py",
        "return train.with_genes(columns_of_genes(train, ",
        "return train.with_genes(columns_of_genes(spots, ",
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
        "arrays of another shape have the same hash", "_files/content.py",
        'f"{part.dtype.str} {part.shape}"', 'f"{part.dtype.str}"', "tests/test_files.py",
    ),
    (
        "a slide's spots are mixed with those of the next", "_slides.py",
        "return [rows[of_row == code] for code in np.unique(of_row)]",
        "return [rows[of_row >= code] for code in np.unique(of_row)]", "tests/spots tests/metrics",
    ),
    (
        "a slide that is given as that of two donors is trained on", "_data/checks.py",
        "if not set(donors[0]) & set(donors[1]):", "if len(donors) > 2:", "tests/spots/test_gather.py",
    ),
    (
        "slides of one patient count as donors, and nobody is told", "_data/checks.py",
        "(key is not None and not shared)", "key is not None", "tests/spots/test_gather.py",
    ),
    (
        "expression is predicted from itself", "tl/_features/to_fit.py",
        "        _check_not_of_genes([source.table for source in sources], slot)", "        pass", "tests/tl/test_features.py",
    ),
    (
        "genes that the user names replace the most variable, though a number is given", "_data/genes.py",
        "return n_genes or (default if genes is None else 0)", "return (n_genes or default) if genes is None else 0",
        "tests/tl/test_fit.py tests/pp/test_complete.py",
    ),
    (
        "blue, green, red passes for H&E", "pp/_features/evidence.py",
        "red_blue, blue_green = nuclei[0] - nuclei[2], nuclei[2] - nuclei[1]",
        "red_blue, blue_green = nuclei[2] - nuclei[0], nuclei[2] - nuclei[1]", "tests/pp/test_looks.py",
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
    failed = fail(copy, tests)
    file.write_text(text)
    return failed


def fail(copy: Path, tests: str) -> bool:
    """Whether one of the tests fails in the copy."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", str(os.cpu_count()),
        "-m", "not slow and not network and not gpu", *tests.split(),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
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
        if fail(copy, " ".join(sorted({path for number in numbers for path in FAULTS[number - 1][-1].split()}))):
            print("the tests fail without a fault")
            return 1
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
