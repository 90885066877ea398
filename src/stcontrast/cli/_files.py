"""What the command line reads and writes: SpatialData stores and h5ad files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["check_out", "columns", "outputs", "read", "read_spatialdata", "slide_files", "table_of", "write"]

ENDINGS = (".zarr", ".h5ad")


def read(path: Path) -> SpatialData | AnnData:
    """A SpatialData store or an h5ad file.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is something else.
    """
    if not path.exists():
        msg = f"No store at {str(path)!r}."
        raise FileNotFoundError(msg)
    if path.suffix == ".h5ad":
        from anndata import read_h5ad

        try:
            return read_h5ad(path)
        except (OSError, KeyError) as error:
            msg = f"{str(path)!r} cannot be read as h5ad ({error})."
            raise ValueError(msg) from error
    import spatialdata
    from zarr.errors import GroupNotFoundError

    wrong = f"{str(path)!r} is not a SpatialData store"
    if path.is_file():
        msg = f"{wrong}, but a file: give a folder that SpatialData wrote, or an h5ad file."
        raise ValueError(msg)
    try:
        return spatialdata.read_zarr(path)
    except GroupNotFoundError as error:
        msg = f"{wrong}: no zarr group was found in it. Give a folder that SpatialData wrote."
        raise ValueError(msg) from error


def read_spatialdata(path: Path) -> SpatialData:
    """A SpatialData store.

    Raises
    ------
    TypeError
        If it is an h5ad file.
    """
    from spatialdata import SpatialData as Container

    data = read(path)
    if not isinstance(data, Container):
        msg = f"{str(path)!r} has no images of its own: a SpatialData store (.zarr) is needed."
        raise TypeError(msg)
    return data


def table_of(data: SpatialData | AnnData, table_key: str | None) -> AnnData:
    """The table that holds the spots."""
    from stcontrast._reading import resolve_table

    return resolve_table(data, table_key=table_key)


def columns(data: SpatialData | AnnData) -> set[str]:
    """Columns of `obs` of all tables."""
    from anndata import AnnData

    tables = [data] if isinstance(data, AnnData) else list(data.tables.values())
    return {str(column) for table in tables for column in table.obs}


def slide_files(paths: Sequence[Path]) -> bool:
    """Whether these are files of a slide scanner and not stores.

    Raises
    ------
    ValueError
        If some are and others are not.
    """
    of_scanner = [path.is_file() and path.suffix not in ENDINGS for path in paths]
    if any(of_scanner) and not all(of_scanner):
        names = [str(path) for path, one in zip(paths, of_scanner, strict=True) if one]
        msg = f"{names} are slide files and the others are stores: predict them in two calls."
        raise ValueError(msg)
    return all(of_scanner)


def check_out(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise where the output cannot be written.

    Raises
    ------
    FileExistsError
        If something lies there and is not to be replaced.
    FileNotFoundError
        If there is no folder to write into.
    ValueError
        If it is one of the inputs.
    """
    if any(out.resolve() == path.resolve() for path in inputs):
        msg = f"{str(out)!r} is an input: give another path to write to."
        raise ValueError(msg)
    if out.exists() and not overwrite:
        msg = f"{str(out)!r} exists: give --overwrite to replace it, or another path."
        raise FileExistsError(msg)
    if not out.resolve().parent.is_dir():
        msg = f"No folder {str(out.parent)!r} to write {out.name!r} into."
        raise FileNotFoundError(msg)


def outputs(inputs: Sequence[Path], out: Path, *, overwrite: bool) -> list[Path]:
    """Where the result of every input goes: `out` for one, files of the inputs' names in the folder `out` for several.

    Raises
    ------
    ValueError
        If the ending is not that of the input, or two inputs have one name.
    """
    if len(inputs) == 1:
        paths = [out]
    else:
        names = [path.name for path in inputs]
        if len(set(names)) < len(names):
            msg = f"Several inputs have the same name, {sorted(names)}: give them in several calls."
            raise ValueError(msg)
        if out.suffix in ENDINGS:
            msg = f"{len(inputs)} inputs need a folder to write to, found {str(out)!r}."
            raise ValueError(msg)
        paths = [out / name for name in names]
        if out.is_file():
            msg = f"{str(out)!r} is a file: give a folder."
            raise NotADirectoryError(msg)
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
    for source, path in zip(inputs, paths, strict=True):
        ending = ".h5ad" if source.suffix == ".h5ad" else ".zarr"
        if path.suffix != ending:
            msg = f"{str(source)!r} gives a result in {ending}; found {str(path)!r}."
            raise ValueError(msg)
        if len(inputs) > 1:
            if (path.exists() and not overwrite) or path.resolve() == source.resolve():
                check_out(path, overwrite=overwrite, inputs=[source])
        else:
            check_out(path, overwrite=overwrite, inputs=[source])
    if len(inputs) > 1:
        out.mkdir(exist_ok=True)
    return paths


def write(data: SpatialData | AnnData, path: Path) -> None:
    """Write a store or an h5ad file, whole or not at all."""
    from anndata import AnnData

    with written_whole(path) as scratch:
        if isinstance(data, AnnData):
            data.write_h5ad(scratch)
        else:
            data.write(scratch)
