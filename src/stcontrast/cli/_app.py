"""The command line: ``stcontrast demo | fit | predict | evaluate``."""

from __future__ import annotations

import dis
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata import SpatialData

__all__ = ["app"]

PACKAGE: Final = Path(__file__).parents[1]
UNEXPECTED: Final = "stcontrast did not expect this error. Please report it with this traceback."

app = typer.Typer(
    help="Expression and tissue subtypes from H&E, learnt from your own spatial transcriptomics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Store = Annotated[Path, typer.Argument(help="SpatialData store (.zarr).")]
DonorKey = Annotated[str, typer.Option(help="Column of obs with patient or animal.")]
LabelKey = Annotated[str | None, typer.Option(help="Column of obs with the annotated subtype.")]
TableKey = Annotated[str | None, typer.Option(help="Table that holds the spots; the only one by default.")]
UmPerPx = Annotated[float | None, typer.Option(help="µm per pixel, where it cannot be derived from the spots.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.callback()
def main(*, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done.")] = False) -> None:
    """Set up logging for the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("stcontrast").setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
def demo(
    *,
    data: Annotated[
        str | None, typer.Option(help="SpatialData store, or 'her2st'; synthetic slides by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table, figures, model and store.")] = Path("demo-output"),
    donor_key: DonorKey = "donor",
    label_key: LabelKey = "subtype",
    sections: Annotated[str, typer.Option(help="her2st: sections, separated by commas.")] = "C2,C3,C4,C5,C6",
    seed: Seed = 0,
) -> None:
    """Hold out one donor: fit, predict its expression and subtypes from its H&E, cross-validate."""
    from stcontrast.cli._demo import run_demo

    with _errors_for_the_user():
        sdata = _demo_data(data, sections=sections, seed=seed)
        typer.echo(run_demo(sdata, out, donor_key=donor_key, label_key=label_key, seed=seed))


@app.command()
def fit(
    stores: Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr) to learn from.")],
    *,
    model: Annotated[Path, typer.Option(help="Folder to save the model in.")],
    batch_key: Annotated[
        str, typer.Option(help="Column of obs with the batch, which the encoder of the gene model does not see.")
    ] = "donor",
    label_key: LabelKey = None,
    method: Annotated[str, typer.Option(help="Method.")] = "stcontrast",
    table_key: TableKey = None,
    um_per_px: UmPerPx = None,
    seed: Seed = 0,
) -> None:
    """Learn from slides and save the model. The stores are not changed."""
    import stcontrast as stc

    with _errors_for_the_user():
        _refuse_existing(model)
        fitted = stc.tl.fit(
            [_read(store) for store in stores], batch_key=batch_key, label_key=label_key, method=method,
            table_key=table_key, um_per_px=um_per_px, seed=seed,
        )  # fmt: skip
        fitted.save(model)
    for score in ("held_out_r", "held_out_macro_f1"):
        if score in fitted.spec:
            typer.echo(
                f"{score} (held-out {fitted.spec['held_out_unit']}s of the training data): {fitted.spec[score]:.3f}"
            )
    typer.echo(f"Model saved in {model}")


@app.command()
def predict(
    store: Store,
    *,
    model: Annotated[Path, typer.Option(help="Folder of a saved model.")],
    out: Annotated[Path, typer.Option(help="Store to write: slides with predictions.")],
    donor_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with patient or animal, to record whether the model was trained on it."),
    ] = None,
    table_key: TableKey = None,
    um_per_px: UmPerPx = None,
) -> None:
    """Predict expression and subtype of a store's slides into a new store."""
    import stcontrast as stc

    with _errors_for_the_user():
        _refuse_existing(out)
        fitted = stc.models.load(model)
        sdata = _read(store)
        where: dict[str, Any] = {"donor_key": donor_key, "table_key": table_key, "um_per_px": um_per_px}
        if fitted.has_expression:
            stc.tl.predict_expression(sdata, fitted, **where)
        if fitted.classes:
            stc.tl.classify(sdata, fitted, **where)
        sdata.write(out)
    typer.echo(f"Written to {out}")


@app.command()
def evaluate(  # noqa: PLR0913
    stores: Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr).")],
    *,
    donor_key: DonorKey = "donor",
    label_key: LabelKey = None,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "stcontrast,ridge,color,mean",
    out: Annotated[Path | None, typer.Option(help="CSV file for every score.")] = None,
    table_key: TableKey = None,
    um_per_px: UmPerPx = None,
    n_jobs: Annotated[int | None, typer.Option(help="Processes to fit in; by cores and memory by default.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Folder for finished fits, to resume from.")] = None,
    seed: Seed = 0,
) -> None:
    """Hold out donors in turn, and print the scores of the methods."""
    import stcontrast as stc

    with _errors_for_the_user():
        if out is not None and not out.parent.is_dir():
            msg = f"No folder {str(out.parent)!r} for the scores."
            raise FileNotFoundError(msg)
        cv = stc.tl.cross_validate(
            [_read(store) for store in stores], donor_key=donor_key, label_key=label_key, table_key=table_key,
            methods=[name.strip() for name in methods.split(",")],
            um_per_px=um_per_px, n_jobs=n_jobs, directory=directory, seed=seed,
        )  # fmt: skip
    typer.echo(cv.summary().round(3).to_string())
    if out is not None:
        cv.scores.to_csv(out, index=False)


def _demo_data(data: str | None, *, sections: str, seed: int) -> SpatialData:
    import stcontrast as stc

    if data is None:
        return stc.datasets.toy(seed=seed)
    if data == "her2st":
        return stc.datasets.her2st([name.strip() for name in sections.split(",")])
    if not Path(data).exists():
        msg = f"No store at {data!r}; `--data` takes a SpatialData store or 'her2st'."
        raise FileNotFoundError(msg)
    return _read(Path(data))


def _read(store: Path) -> SpatialData:
    import spatialdata
    from zarr.errors import GroupNotFoundError

    if not store.exists():
        msg = f"No store at {str(store)!r}."
        raise FileNotFoundError(msg)
    try:
        return spatialdata.read_zarr(store)
    except GroupNotFoundError as error:
        msg = f"{str(store)!r} is not a SpatialData store: no zarr group was found in it. Give a folder that SpatialData wrote."
        raise ValueError(msg) from error


def _refuse_existing(path: Path) -> None:
    if path.exists():
        msg = f"{str(path)!r} exists; name another or remove it."
        raise FileExistsError(msg)


@contextmanager
def _errors_for_the_user() -> Iterator[None]:
    """Print an error that the package raised on purpose as one line; any other keeps its traceback."""
    try:
        yield
    except Exception as error:
        if not _raised_on_purpose(error):
            error.add_note(UNEXPECTED)
            raise
        # a KeyError shows its message in quotes
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        typer.echo(f"Error: {' '.join(text.split())}", err=True)
        raise typer.Exit(1) from error


def _raised_on_purpose(error: Exception) -> bool:
    """Whether a `raise` statement in the package's own code made the error.

    A missing key of a dict, or an error inside another package, is not raised by such a statement. An AttributeError is
    how a module says that it lacks a name, which is no mistake of the user.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, AttributeError):
        return False
    code = trace.tb_frame.f_code
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)
