"""What the defaults of "stcontrast" rest on: correlation with slides that were held out *inside* each training set.

    python benchmarks/choices.py --slides OUT/slides

OUT/slides is what benchmarks/accuracy.py leaves. Each training set is of one donor; its slides are held out in turn (or
blocks of it), and what the model's spec reports as held-out correlation is printed. No other donor is looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import pandas as pd

import stcontrast as stc

SETS = {
    "her2st C": ["C2", "C3", "C4", "C5"],
    "her2st A": ["A1", "A2"],
    "stutility 1": ["MOB1", "MOB2"],
    "stutility 2": ["MOB3", "MOB4"],
    "bulb, mouse A": ["Rep01", "Rep02"],
}
ROWS = {
    "ridge": ("ridge", {}),
    "stcontrast": ("stcontrast", {}),
    "no contrast": ("stcontrast", {"contrastive_weight": 0.0}),
    "InfoNCE": ("stcontrast", {"loss": "info_nce"}),
    "BLEEP's loss": ("stcontrast", {"loss": "similarity_target"}),
    "sigmoid loss": ("stcontrast", {"loss": "sigmoid"}),
    "4 axes": ("stcontrast", {"n_coordinates": 4}),
    "16 axes": ("stcontrast", {"n_coordinates": 16}),
    "32 axes": ("stcontrast", {"n_coordinates": 32}),
    "VAE": ("stcontrast", {"gene_space": "vae"}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    folder = parser.parse_args().slides
    stc.settings.progress = False
    table = {}
    for name, slides in SETS.items():
        tables = [ad.read_h5ad(folder / f"{slide}.h5ad") for slide in slides]
        for row, (method, options) in ROWS.items():
            for data in tables:
                data.obs["donor"] = "one"
            model = stc.tl.fit(tables, batch_key="library_id", donor_key="donor", method=method, options=options)
            table[row, name] = model.spec["held_out_r"]
    print("Correlation with held-out slides inside each training set")
    print(pd.Series(table).unstack().reindex(index=list(ROWS), columns=list(SETS)).round(3).to_string())


if __name__ == "__main__":
    main()
