"""Figures of the command line, drawn without a window."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stcontrast._keys import CLASS, HELD_OUT_R, PREDICTION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spatialdata import SpatialData

__all__ = ["best_gene", "draw_results", "without_window"]


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


def draw_results(
    sdata: SpatialData, path: Path, *, gene: str | None = None, keys: Mapping[str, Any] | None = None
) -> list[Path]:
    """Draw the prediction of a gene and the classes next to a store, found by these keys; the files."""
    found = dict(keys or {})
    from matplotlib.figure import Figure

    import stcontrast as stc

    drawn = []
    with without_window():
        figures = {}
        if PREDICTION_TABLE in sdata.tables:
            figures["expression"] = stc.pl.spatial_pred(sdata, gene or best_gene(sdata), return_fig=True, **found)
        if any(CLASS in table.obs for table in sdata.tables.values()):
            figures["classes"] = stc.pl.spatial_class(sdata, return_fig=True, **found)
        for name, figure in figures.items():
            if isinstance(figure, Figure):
                drawn.append(path.with_name(f"{path.stem}_{name}.png"))
                figure.savefig(drawn[-1], dpi=150)
    return drawn
