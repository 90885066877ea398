"""A model on disk: JSON and safetensors, and a manifest of both. Nothing in it is executed, no path in it is followed."""

from __future__ import annotations

import json
import stat
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stcontrast._files.content import content_hash, file_sha256
from stcontrast._files.whole import recover, written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stcontrast._state import State

__all__ = ["ARRAYS", "MODEL", "holds_model", "read_folder", "read_state", "unreadable", "write_folder", "write_state"]

FORMAT: Final = 4
MODEL: Final = "model.json"
STATE: Final = "state.json"
ARRAYS: Final = "arrays.safetensors"
# spec of the formats before 4, by format; no version of the package with them was released
OLD_SPECS: Final = {"spec.json": 3, "card.json": 1}
# genes, slides and scores of the largest models take a few MB
MOST_BYTES: Final = 2**26


class _File(BaseModel):
    """Size and content of a file of a model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    """What ``model.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[4]
    kind: str
    made_by: str
    spec: dict[str, Any]
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.(json|safetensors)$")], _File]
    sha256: str


def write_folder(
    directory: str | Path,
    kind: str,
    spec: Mapping[str, Any],
    state: State,
    *,
    overwrite: bool,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Write a model into a folder of its own, whole or not at all.

    Parameters
    ----------
    directory
        The folder; made if absent. An empty one is taken.
    kind
        Class of the model.
    spec
        What the model is, as plain values.
    state
        What it learnt: nested dictionaries of arrays and plain values.
    overwrite
        Replace a model that is there.
    more
        Writes further files into the folder that it is given.

    Raises
    ------
    FileExistsError
        If the folder is there and `overwrite` is off, or if it holds anything but a model of stcontrast.
    """
    target = Path(directory).resolve()
    if target == Path.cwd():
        msg = f"{str(directory)!r} is the working directory: name a folder in it, which will hold only the model."
        raise FileExistsError(msg)
    recover(target)
    if target.is_file():
        msg = f"{str(directory)!r} is a file: name a folder to save the model to."
        raise FileExistsError(msg)
    if target.exists():
        _check_replaceable(target, overwrite=overwrite)
    with written_whole(target) as folder:
        folder.mkdir()
        write_state(folder, state)
        if more is not None:
            more(folder)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(folder.iterdir())
        }
        head = {"format": FORMAT, "kind": kind, "made_by": version("stcontrast"), "spec": dict(spec), "files": files}
        # as it will be read: keys are text
        head = json.loads(json.dumps(head))
        (folder / MODEL).write_text(json.dumps(head | {"sha256": content_hash([head])}, indent=1))


def read_folder(directory: str | Path, kind: str) -> tuple[dict[str, Any], State]:
    """Read what :func:`write_folder` wrote. Every file is checked against the manifest before it is looked into.

    Returns
    -------
    Spec and state.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If it was written in another format, is of another kind, or was cut or changed since.
    """
    folder = Path(directory)
    recover(folder)
    file = folder / MODEL
    if not file.exists():
        _refuse_old(folder)
        msg = f"No stcontrast model in {str(folder)!r}: `{MODEL}` is absent."
        raise FileNotFoundError(msg)
    with unreadable(folder):
        _check_regular(file, most=MOST_BYTES)
        with file.open("rb") as opened:
            # arrays under this name would be decoded as text, in several times their size
            if opened.read(1) != b"{":
                msg = f"`{MODEL}` holds no JSON object"
                raise ValueError(msg)
        head = json.loads(file.read_text())
        if head.get("format") != FORMAT:
            msg = (
                f"it was saved in format {head.get('format')!r}, by stcontrast {head.get('made_by', 'of an unknown version')}; "
                f"this version reads format {FORMAT}"
            )
            raise ValueError(msg)
        manifest = _Manifest.model_validate(head)
        if content_hash([{name: value for name, value in head.items() if name != "sha256"}]) != manifest.sha256:
            msg = f"`{MODEL}` was changed after it was saved"
            raise ValueError(msg)
        if manifest.kind != kind:
            msg = f"it holds a {manifest.kind}, not a {kind}"
            raise ValueError(msg)
        if not {STATE, ARRAYS} <= manifest.files.keys():
            msg = f"`{MODEL}` names no `{STATE}` or no `{ARRAYS}`"
            raise ValueError(msg)
        for name, expected in manifest.files.items():
            _check_regular(folder / name, size=expected.size)
            if file_sha256(folder / name) != expected.sha256:
                msg = f"`{name}` was changed after it was saved (its SHA-256 differs)"
                raise ValueError(msg)
        return manifest.spec, read_state(folder)


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model, of this format or an older one."""
    recover(folder)
    return any((folder / name).is_file() for name in (MODEL, *OLD_SPECS))


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of a folder into one error that names it.

    Raises
    ------
    ValueError
        Instead of any error that content can cause.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        told = (
            str(error)
            if first is None
            else f"`{MODEL}`, {'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}"
        )
        msg = (
            f"The model in {str(folder)!r} cannot be read: {told or type(error).__name__}. Copy it again from where it was "
            "saved, or fit and save it again (`stc.tl.fit`, `model.save`)."
        )
        raise ValueError(msg) from error


def write_state(folder: Path, state: State) -> None:
    """Write nested dictionaries of arrays and plain values: ``state.json`` and ``arrays.safetensors``."""
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {}
    text: dict[str, Any] = {}
    plain = _split(state, "", arrays, text)
    (folder / STATE).write_text(json.dumps({"plain": plain, "text": text}))
    save_file(arrays, folder / ARRAYS)


def read_state(folder: Path) -> State:
    """Read what :func:`write_state` wrote."""
    from safetensors.numpy import load_file

    found = json.loads((folder / STATE).read_text())
    state: State = found["plain"]
    arrays: dict[str, Any] = load_file(folder / ARRAYS)
    arrays |= {path: np.array(words, dtype=np.str_) for path, words in found["text"].items()}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        place = state
        for parent in parents:
            place = place[parent]
        place[name] = array
    return state


def _split(state: State, prefix: str, arrays: dict[str, Any], text: dict[str, Any]) -> State:
    """The plain values of a state; its arrays are put into `arrays` and `text`, by path."""
    plain: State = {}
    for name, value in state.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            plain[name] = _split(value, f"{path}/", arrays, text)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "U":
            text[path] = value.tolist()
        elif isinstance(value, np.ndarray):
            # safetensors writes memory as it lies
            arrays[path] = np.asarray(value, order="C")
        else:
            plain[name] = value
    return plain


def _check_replaceable(target: Path, *, overwrite: bool) -> None:
    if not any(target.iterdir()):
        return
    if not overwrite:
        msg = f"{str(target)!r} exists; `overwrite=True` replaces the model in it."
        raise FileExistsError(msg)
    there = {path.name for path in target.iterdir()}
    ours = {MODEL, STATE, ARRAYS}
    if (target / MODEL).is_file():
        try:
            ours |= _Manifest.model_validate_json((target / MODEL).read_bytes()).files.keys()
        except ValidationError:
            ours = set()
    elif (target / "spec.json").is_file():
        ours = {"spec.json", STATE, "arrays.npz", "tower.safetensors"}
    if other := sorted(there - ours):
        msg = (
            f"{str(target)!r} holds files that are not of a stcontrast model ({', '.join(other[:5])}). Nothing was "
            "changed. Give another folder, or move these files away."
        )
        raise FileExistsError(msg)


def _check_regular(path: Path, *, most: int | None = None, size: int | None = None) -> None:
    """Raise unless a path is a plain file of this size: a device or a pipe may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = f"`{path.name}` is not a plain file"
        raise ValueError(msg)
    if (size is not None and found.st_size != size) or (most is not None and found.st_size > most):
        expected = f"{size} were saved" if size is not None else f"at most {most} can be"
        msg = f"`{path.name}` has {found.st_size} bytes, {expected}"
        raise ValueError(msg)


def _refuse_old(folder: Path) -> None:
    for name, number in OLD_SPECS.items():
        if (folder / name).is_file():
            msg = (
                f"The model in {str(folder)!r} was saved in format {number} or older (`{name}`); this version reads format "
                f"{FORMAT}. Fit it again with `stc.tl.fit` and save it, or read it with the version that wrote it."
            )
            raise ValueError(msg)
