"""TPIRBAE's table: does an image encoder that expression has taught tell tissue apart better than one that it has not?

    python benchmarks/tpirbae.py --data FOLDER --out OUT [--sets bulb toy] [--seeds 0 1 ...] [--epochs N] [--rows NAME ...]
                                 [--network NAME --weights FILE] [--vae-epochs N]

Every row is a gene encoder (scvi-tools' scVI or scANVI; the package's own VAE, guided by classes or not; expression as it
is, which makes CLIP and BLEEP), an image encoder that is frozen or trained by the contrast, and a loss (InfoNCE, or BLEEP's
similarity targets). Then a linear probe and the votes of 20 nearest neighbours on the image embedding tell the classes
of slides that took no part in anything: macro-F1. They are compared with the same probes on the features of image encoders
that no expression has taught: of ``--network`` with the weights of a file, and of a ResNet with random weights; and, where the
contrast has trained the image encoder, with those on its features, without the projection head.

``bulb``: olfactory bulb, layers. Counts of two sections of mouse A teach; labels of two of the mice B, C, D and of A train
the probes, the third mouse is tested. Network: MobileNetV2 with ImageNet weights from FOLDER/encoders, or what
``--network`` and ``--weights`` name (as timm does). ``toy``: four synthetic donors, each left out in turn; a small network
with random weights. All crops are of one field, 200 µm (toy: 100 µm), features standardised within the slide. scVI is trained for 100 epochs; its own rule would be 400.

Scores are kept in ``OUT/tpirbae.csv`` and not computed again, trainings of an image encoder in ``OUT/towers``: a run that
was broken off goes on there. Remove both after a change of the method, and with another network or number of epochs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[1]))

from accuracy import MICE, NETWORKS

# all gene encoders under the same contrast
EXPRESSION = {"method": "bleep", "normalize": True, "temperature": 0.1, "batch_size": 128, "max_epochs": 50}
GENES = {
    "scVI": {"method": "tpirbae", "vae": "scvi-tools"},
    "scANVI": {"method": "tpirbae", "vae": "scvi-tools", "guided": True},
    "ours": {"method": "tpirbae"},
    "ours, guided": {"method": "tpirbae", "guided": True},
    "expression": EXPRESSION,
}
IMAGES = ("frozen", "trained")
LOSSES = {"InfoNCE": {"loss": "info_nce"}, "similarity": {"loss": "similarity_target"}}
ROWS = {" + ".join(names): names for names in product(GENES, IMAGES, LOSSES)}
UNTAUGHT = ("given weights", "random ResNet")
PROBES = {
    "linear": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
    "kNN": lambda: KNeighborsClassifier(20, metric="cosine"),
}
# of the training of an image encoder
HOW = {
    "bulb": {"loss": "method", "batch_size": 128},
    "toy": {
        "loss": "method", "batch_size": 128, "batch_norm": "adapted", "learning_rate": 1e-3, "layer_decay": 1.0,
    },
}  # fmt: skip


def read(name, data):
    """Slides of a set; columns of their batches, donors and classes; donors to test."""
    if name == "toy":
        import stcontrast as stc

        return [stc.datasets.toy(n_donors=4, n_spots=120, n_genes=120)], ("donor", "donor", "subtype"), None
    from tests import slides

    found = [slides.olfactory_bulb(data / "olfactory_bulb", int(section[3:])) for section in MICE]
    for section, sdata in zip(MICE, found, strict=True):
        sdata["table"].obs["donor"], sdata["table"].obs["section"] = MICE[section], section
    return found, ("section", "donor", "layer"), ["B", "C", "D"]


def remember_gene_models():
    """Train a gene model once, not again for every row with the same one: the seed makes the same of it."""
    from stcontrast._files import content_hash
    from stcontrast._genespace import VaeSpace

    train, kept = VaeSpace.fit, {}

    def fit(self, spots):
        key = (type(self), self.guided, self.seed, self.max_epochs, content_hash([spots.counts.toarray(), spots.label]))
        if key not in kept:
            train(self, spots)
            kept[key] = {name: value for name, value in vars(self).items() if name in ("vae", "share", "names")}
        self.__dict__.update(kept[key])

    VaeSpace.fit = fit


class Slides:
    """Spots and crops of a set, and what image encoders make of them."""

    def __init__(self, name, arguments):
        import stcontrast as stc
        from stcontrast._data import gather
        from stcontrast._models.image_tower import CropStore
        from stcontrast._reading import Keys, resolve_all

        self.name, self.arguments = name, arguments
        data, (batch, donor, label), tested = read(name, arguments.data)
        sources = resolve_all(data, Keys(batch_key=batch, donor_key=donor, label_key=label))
        self.spots = gather(sources, Keys(batch_key=batch, donor_key=donor, label_key=label))
        self.tested = tested or sorted(set(self.spots.donor))
        if name == "toy":
            self.base = stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=64)
        elif arguments.weights is not None:
            self.base = stc.pp.TimmEncoder(arguments.network, weights=arguments.weights, size_px=96)
        else:
            file, mean, std = NETWORKS["mobilenetv2_100"]
            weights = arguments.data / "encoders" / file
            self.base = stc.pp.TimmEncoder("mobilenetv2_100", weights=weights, mean=mean, std=std, size_px=96)
        self.store = CropStore.cut(sources, (100.0 if name == "toy" else 200.0,), self.base.size_px)

    @cache  # noqa: B019 (there are two such objects)
    def features(self, which, seed):
        """Features of all spots by an encoder that expression has not taught, standardised within the slide."""
        import stcontrast as stc

        base = self.base
        if which == "random ResNet":
            base = stc.pp.TimmEncoder("resnet18", pretrained=False, size_px=base.size_px, seed=seed)
        return np.concatenate([base(crops[:, 0]) for crops in self.every_crop()])

    def every_crop(self):
        from stcontrast._models.image_tower import CropRows

        return CropRows(self.store, np.arange(len(self.store))).batches()

    def design(self, features):
        return replace(self.spots.unseen(), features=features).with_design(n_neighbors=0, standardize="slide")

    def embedding(self, row, rows, seed):
        """Image embedding of all spots, taught on some of them; and the features, where their encoder was trained."""
        from stcontrast._keys import IMAGE_EMBEDDING
        from stcontrast._models.image_tower import CropRows, TowerOptions
        from stcontrast._models.image_tower.cross_fit import cross_fit, encode
        from stcontrast.fitted._fit import FitSpec, training_spots
        from stcontrast.methods._base import get_method

        gene, image, loss = ROWS[row]
        options = {**GENES[gene], **LOSSES[loss]}
        if "vae" in options:
            options["vae_epochs"] = self.arguments.vae_epochs
        fresh = partial(get_method, options.pop("method"), seed=seed, options=options)
        features = self.features("given weights", 0)
        if image == "trained":
            kept = (
                self.arguments.out
                / "towers"
                / "-".join([self.name, row, str(seed), *sorted(set(self.spots.donor[rows]))])
            )
            how = TowerOptions.of({**HOW[self.name], "epochs": self.arguments.epochs, "checkpoint_dir": kept})
            data = training_spots(self.spots, rows, FitSpec())
            found = cross_fit(
                self.base, CropRows(self.store, rows), data, (), how, center=True, seed=seed, method=fresh
            )
            features = encode(found.encoder, CropRows(self.store, np.arange(len(self.store))))
        spots = replace(self.spots, features=features)
        method = fresh()
        method.fit_parts(training_spots(spots, rows, FitSpec()).with_design(n_neighbors=0, standardize="slide"))
        design = self.design(features)
        found = {"embedding": method.embed(design)[IMAGE_EMBEDDING]}
        return {**found, "features": design.design} if image == "trained" else found


def scores(slides, row, seed, donors):
    """Macro-F1 of both probes on some donors, each left out in turn."""
    spots, taught = slides.spots, {}
    for donor in donors:
        others = np.flatnonzero(spots.donor != donor)
        if row in UNTAUGHT:
            seen = {"features": slides.design(slides.features(row, seed)).design}
        else:
            rows = others[spots.measured[others]]
            # where the donor that is tested has no counts, the same spots teach whatever donor it is
            if rows.tobytes() not in taught:
                taught[rows.tobytes()] = slides.embedding(row, rows, seed)
            seen = taught[rows.tobytes()]
        train, test = others[spots.label[others] >= 0], np.flatnonzero((spots.donor == donor) & (spots.label >= 0))
        for (on, x), (probe, make) in product(seen.items(), PROBES.items()):
            guess = make().fit(x[train], spots.label[train]).predict(x[test])
            truth = spots.label[test]
            yield {
                "set": slides.name, "row": row, "seed": seed, "donor": donor, "on": on, "probe": probe,
                "F1": f1_score(truth, guess, average="macro"), "accuracy": (truth == guess).mean(),
            }  # fmt: skip


def effects(table):
    """What each part is worth: mean difference over the other parts, and in how many of them it is above 0."""
    parts = pd.DataFrame([ROWS.get(row, (row, "", "")) for row in table.index], index=table.index)
    of_scvi = parts[0].isin(["scVI", "scANVI"])
    asked = {
        "scANVI - scVI": (0, "scANVI", "scVI", parts[1] != ""),
        "ours - scVI": (0, "ours", "scVI", parts[1] != ""),
        "scVI - expression": (0, "scVI", "expression", parts[1] != ""),
        "scANVI - expression": (0, "scANVI", "expression", parts[1] != ""),
        "similarity - InfoNCE": (2, "similarity", "InfoNCE", of_scvi),
        "trained - frozen": (1, "trained", "frozen", of_scvi),
    }
    lines = {}
    for name, (level, one, other, among) in asked.items():
        keyed = table[among].set_index(pd.MultiIndex.from_frame(parts[among]))
        if not {one, other} <= set(parts.loc[among, level]):
            continue
        gain = (keyed.xs(one, level=level) - keyed.xs(other, level=level)).dropna(how="all")
        lines[name] = [
            f"{gain[c].mean():+.3f} ({(gain[c] > 0).sum()} of {n})" if (n := gain[c].notna().sum()) else ""
            for c in gain
        ]
    if "given weights" in table.index and of_scvi.any():
        given = table.loc["given weights"]
        lines["best of scVI and scANVI - given weights"] = [
            f"{table.loc[of_scvi, c].max() - given[c[0], 'features', c[2]]:+.3f}" for c in table
        ]
    return pd.DataFrame.from_dict(lines, orient="index", columns=table.columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=HOW, default=list(HOW))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", nargs="+", choices=[*UNTAUGHT, *ROWS], default=[*UNTAUGHT, *ROWS], metavar="NAME")
    parser.add_argument("--vae-epochs", type=int, default=100)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    import stcontrast as stc

    stc.settings.progress = False
    logging.getLogger("stcontrast").setLevel(logging.ERROR)
    remember_gene_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "tpirbae.csv"
    keys = ["set", "row", "seed", "donor"]
    for name in arguments.sets:
        slides = Slides(name, arguments)
        for seed, row in product(arguments.seeds, arguments.rows):
            done = set(map(tuple, pd.read_csv(kept, dtype=str)[keys].to_numpy())) if kept.exists() else set()
            if missing := [donor for donor in slides.tested if (name, row, str(seed), donor) not in done]:
                found = pd.DataFrame(scores(slides, row, seed, missing))
                found.to_csv(kept, mode="a", header=not kept.exists(), index=False)
        slides.store.close()
    found = pd.read_csv(kept, dtype={"donor": str})
    found = found[found["row"].isin(arguments.rows) & found["set"].isin(arguments.sets)]
    of_seed = found.groupby(["row", "set", "on", "probe", "seed"])["F1"].mean()
    table = of_seed.groupby(["row", "set", "on", "probe"]).mean().unstack(["set", "on", "probe"])
    table = table.reindex([row for row in arguments.rows if row in table.index]).sort_index(axis=1)
    print(table.round(3).to_string())
    print(effects(table).to_string())
    if found["seed"].nunique() > 1:
        spread = of_seed.groupby(["row", "set", "on", "probe"]).agg(["min", "max"]).unstack(["set", "on", "probe"])
        print(spread.reindex(table.index).round(3).to_string())


if __name__ == "__main__":
    main()
