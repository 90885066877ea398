"""What the command line tells of slides, models and results: text and figures."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from stcontrast._keys import CLASS, HELD_OUT_R, PREDICTION_TABLE, UNS
from stcontrast._reading import Keys, resolve_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stcontrast.models import Predictor

__all__ = [
    "about_model", "about_slides", "best_gene", "check_gene", "say_predicted", "with_classes", "without_window",
]  # fmt: skip

SHOWN = 8


def about_model(folder: Path) -> str:
    """Method, genes, classes, donors, features and held-out scores of a saved model."""
    from stcontrast.models import load

    spec = load(folder).spec
    unit = spec.get("held_out_unit", "group")
    lines: dict[str, str] = {
        "model": f"{folder}, method {spec['method']}, seed {spec['seed']}",
        "genes": f"{len(spec['genes'])}: {_some(spec['genes'])}" if spec["genes"] else "none",
        "classes": ", ".join(spec["classes"]) or "none",
        "trained on": (
            f"{spec['n_spots_used']} of {spec['n_spots']} spots of {len(spec['slides'])} slides of the donors "
            f"{_some(spec['donors'])}"
        ),
        "features": "; ".join(
            f"{record['encoder']['name']} ({record['n_features']}) at {_numbers(record.get('field_um'))} µm"
            for record in spec["image_features"]
        ),
        "spots": "unknown distance" if not spec["spot_distance_um"] else f"{spec['spot_distance_um']:.4g} µm apart",
        **{
            name: f"{spec[name]:.3f} (held-out {unit}s of the training data)"
            for name in ("held_out_r", "held_out_macro_f1")
            if name in spec
        },
        "versions": ", ".join(f"{name} {version}" for name, version in spec["versions"].items()),
    }
    return _table(lines)


def about_slides(data: SpatialData | AnnData, *, table_key: str | None) -> str:
    """Slides, images, scale, genes and columns of a store."""
    [source] = resolve_all(data, Keys(table_key=table_key))
    table = source.table
    lines = {
        "spots": f"{table.n_obs} in {len(source.slides)} slides",
        "genes": f"{table.n_vars}: {_some(table.var_names)}" if table.n_vars else "none",
        "layers": ", ".join(map(str, table.layers)) or "none",
        "columns": ", ".join(map(str, table.obs)) or "none",
        "obsm": ", ".join(map(str, table.obsm)) or "none",
        "made by stcontrast": ", ".join(sorted(table.uns.get(UNS, {}))) or "nothing",
    }
    for slide in source.slides:
        scale = "µm per pixel unknown" if slide.um_per_px is None else f"{slide.um_per_px:.4g} µm per pixel"
        image = "no image" if slide.image is None else f"image {slide.image.name}"
        lines[f"slide {slide.name}"] = f"{len(slide.rows)} spots, {image}, {scale}"
    return _table(lines)


def _table(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {said}" for name, said in lines.items())


def _some(names: object) -> str:
    every = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def _numbers(values: object) -> str:
    return "?" if values is None else ", ".join(f"{value:g}" for value in values)  # type: ignore[attr-defined]


def check_gene(model: Predictor, gene: str | None) -> None:
    """Refuse a gene for the figure that the model does not predict."""
    if gene is not None and gene not in model.genes:
        msg = f"--gene: the model does not predict {gene!r}; it has {len(model.genes)} genes, the first {model.genes[:5]}."
        raise ValueError(msg)


def with_classes(predicted: AnnData, data: Any) -> AnnData:
    """The prediction of an AnnData, with the classes that were written to it."""
    for column in (name for name in (CLASS, f"{CLASS}_confidence") if name in data.obs):
        predicted.obs[column] = data.obs[column]
    return predicted


def say_predicted(
    result: Any, path: Path, *, gene: str | None, figure: bool, keys: Mapping[str, Any] | None = None
) -> None:
    """Say what was predicted and where it was written, and draw it unless `figure` is false."""
    from anndata import AnnData

    if isinstance(result, AnnData):
        typer.echo(f"{result.n_vars} genes of {result.n_obs} spots, written to {path}")
        typer.echo(f"Next: in Python, scanpy.read_h5ad('{path}')")
        return
    said = []
    if PREDICTION_TABLE in result.tables:
        table = result.tables[PREDICTION_TABLE]
        said.append(f"{table.n_vars} genes of {table.n_obs} spots")
    if any(CLASS in table.obs for table in result.tables.values()):
        said.append("a class of every spot")
    typer.echo(f"{' and '.join(said)}, written to {path}")
    if figure:
        for drawn in draw_results(result, path, gene=gene, keys=keys or {}):
            typer.echo(f"Figure: {drawn}")
    typer.echo(f"Next: in Python, stc.pl.spatial_pred(spatialdata.read_zarr('{path}'), GENE)")


@contextmanager
def without_window() -> Iterator[None]:
    """Draw into files alone, and put the backend back."""
    from matplotlib import pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("Agg")
    try:
        yield
    finally:
        plt.close("all")
        plt.switch_backend(backend)


def best_gene(sdata: SpatialData) -> str:
    """The gene with the highest correlation on held-out training donors: chosen without the test donor."""
    var = sdata.tables[PREDICTION_TABLE].var
    return str(var[HELD_OUT_R].idxmax() if var[HELD_OUT_R].notna().any() else var.index[0])


def draw_results(sdata: SpatialData, path: Path, *, gene: str | None, keys: Mapping[str, Any]) -> list[Path]:
    """Draw the prediction of a gene and the classes next to a store, found by these keys; the files."""
    from matplotlib.figure import Figure

    import stcontrast as stc

    drawn = []
    with without_window():
        figures = {}
        if PREDICTION_TABLE in sdata.tables:
            figures["expression"] = stc.pl.spatial_pred(sdata, gene or best_gene(sdata), return_fig=True, **keys)
        if any(CLASS in table.obs for table in sdata.tables.values()):
            figures["classes"] = stc.pl.spatial_class(sdata, return_fig=True, **keys)
        for name, figure in figures.items():
            if isinstance(figure, Figure):
                drawn.append(path.with_name(f"{path.stem}_{name}.png"))
                figure.savefig(drawn[-1], dpi=150)
    return drawn
