"""The demo: from slides to a table of scores, on synthetic or real data."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stcontrast._keys import CLASS, PREDICTION_TABLE
from stcontrast._reading import resolve_slides, resolve_table, table_region_keys
from stcontrast.cli._files import read_spatialdata
from stcontrast.cli._results import best_gene, without_window

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stcontrast.tl import CrossValidation

__all__ = ["WRITTEN", "demo_data", "run_demo"]

logger = logging.getLogger(__name__)

HER2ST_SECTIONS: Final = "C2,C3,C4,C5,C6"
WRITTEN: Final = ("model", "held-out.zarr", "summary.csv", "expression.png", "subtypes.png")


def demo_data(data: str | None, *, sections: str | None, seed: int) -> SpatialData:
    """Synthetic slides, sections of her2st, or a store.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    """
    import stcontrast as stc

    if data is None:
        return stc.datasets.toy(seed=seed)
    if data == "her2st":
        return stc.datasets.her2st([name.strip() for name in (sections or HER2ST_SECTIONS).split(",")])
    if not Path(data).exists():
        msg = f"No store at {data!r}; `--data` takes a SpatialData store or 'her2st'."
        raise FileNotFoundError(msg)
    return read_spatialdata(Path(data))


def run_demo(sdata: SpatialData, out: Path, *, donor_key: str, label_key: str | None, seed: int) -> str:
    """Fit, predict, classify and cross-validate, and write the results into a folder.

    Parameters
    ----------
    sdata
        Slides with H&E and counts, of several donors or of one.
    out
        Folder; results of an earlier demo in it are replaced, other files are not touched.
    donor_key, label_key
        Columns of `obs`.
    seed
        Seed of everything random.

    Returns
    -------
    The text to print: what was held out, and the table of methods.
    """
    import stcontrast as stc

    sdata = _with_image(sdata)
    table = resolve_table(sdata)
    if label_key not in table.obs or table.obs[label_key].isna().all():
        label_key = None
    unit, key = _held_out_unit(sdata, donor_key)
    held_out = sorted(set(table.obs[key].astype(str)))[-1]
    logger.info("Held out: %s %s.", unit, held_out)
    stc.pp.image_features(sdata)
    test_slides = _slides(sdata, key, held_out)
    train = _subset(sdata, [name for name in _regions(sdata) if name not in test_slides])
    test = _subset(sdata, test_slides)

    model = stc.tl.fit(train, batch_key=key, label_key=label_key, seed=seed)
    unmeasured = _without_counts(test)
    stc.tl.predict_expression(unmeasured, model, donor_key=key)
    test.tables[PREDICTION_TABLE] = unmeasured.tables[PREDICTION_TABLE]
    if label_key:
        stc.tl.classify(test, model, donor_key=key)
    cv = stc.tl.cross_validate(sdata, donor_key=key, label_key=label_key, seed=seed)

    out.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        _remove(out / name)
    model.save(out / "model")
    test.write(out / "held-out.zarr")
    summary = _summary(cv, unit)
    summary.to_csv(out / "summary.csv")
    _figures(test, model_gene=best_gene(test), label_key=label_key, out=out)
    lines = [
        f"Held out: {unit} {held_out}, predicted from its H&E alone by a model of the others.",
        f"Every {unit} held out in turn ({cv.scores['donor'].nunique()}), mean over {unit}s:",
        "",
        summary.round(3).to_string(),
        "",
        f"Written to {out}/: {', '.join(path.name for path in sorted(out.iterdir()))}",
    ]
    if unit == "slide":
        lines.insert(1, "There is only one donor: its slides are held out, which says nothing about other donors.")
    return "\n".join(lines)


def _with_image(sdata: SpatialData) -> SpatialData:
    with_image = [slide.name for slide in resolve_slides(sdata).slides if slide.image is not None]
    if len(with_image) < 2:
        msg = f"The demo needs two slides with an image; found {with_image}."
        raise ValueError(msg)
    return _subset(sdata, with_image)


def _held_out_unit(sdata: SpatialData, donor_key: str) -> tuple[str, str]:
    table = resolve_table(sdata)
    if donor_key not in table.obs:
        msg = f"No column {donor_key!r} in `obs`; its columns are {sorted(table.obs.columns)}. Give `--donor-key`."
        raise KeyError(msg)
    if table.obs[donor_key].nunique() > 1:
        return "donor", donor_key
    return "slide", str(table.uns["spatialdata_attrs"]["region_key"])


def _regions(sdata: SpatialData) -> list[str]:
    return table_region_keys(resolve_table(sdata))[0]


def _slides(sdata: SpatialData, key: str, value: str) -> list[str]:
    table = resolve_table(sdata)
    region = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str)
    return sorted(set(region[table.obs[key].astype(str) == value]))


def _subset(sdata: SpatialData, slides: list[str]) -> SpatialData:
    images = [slide.image.name for slide in resolve_slides(sdata).slides if slide.name in slides and slide.image]
    return sdata.subset([*slides, *images], filter_tables=True)


def _without_counts(sdata: SpatialData) -> SpatialData:
    """The same slides with H&E and spots, but without genes."""
    from anndata import AnnData
    from spatialdata import SpatialData as Container

    table = resolve_table(sdata)
    bare = AnnData(
        obs=table.obs.copy(),
        uns={key: table.uns[key] for key in ("spatialdata_attrs", "stcontrast") if key in table.uns},
    )
    return Container(images=dict(sdata.images.items()), shapes=dict(sdata.shapes.items()), tables={"table": bare})


def _summary(cv: CrossValidation, unit: str) -> pd.DataFrame:
    summary = cv.summary()
    names = {"pearson": "mean per-gene r", "macro_f1": "macro-F1", "rmse": "RMSE"}
    names |= {
        column: column.replace("pearson_vs_", "r − ").replace("_low", " (low)").replace("_high", " (high)")
        for column in summary.columns.astype(str)
        if column.startswith("pearson_vs_")
    }
    columns = [name for name in ("pearson", "rmse", "macro_f1") if name in summary] + [
        name for name in names if name.startswith("pearson_vs_")
    ]
    table = summary[[name for name in columns if name in summary]].rename(columns=names)
    table.index.name = f"method ({unit} held out)"
    return table.dropna(axis=1, how="all")


def _figures(sdata: SpatialData, *, model_gene: str, label_key: str | None, out: Path) -> None:
    from matplotlib.figure import Figure

    import stcontrast as stc

    with without_window():
        figures = {"expression.png": stc.pl.spatial_pred(sdata, model_gene, return_fig=True)}
        if label_key and CLASS in resolve_table(sdata).obs:
            figures["subtypes.png"] = stc.pl.spatial_class(sdata, label_key=label_key, return_fig=True)
        for name, figure in figures.items():
            if isinstance(figure, Figure):
                figure.savefig(out / name, dpi=150)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
