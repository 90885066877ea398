"""A fitted model on disk: JSON for what is plain, one npz file for arrays, nothing that can carry code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

import numpy as np

from stcontrast._files import written_whole
from stcontrast.methods._base import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stcontrast._models.image_tower import TunedEncoder
    from stcontrast._state import State

__all__ = ["holds_model", "read_spec", "read_state", "read_tower", "write_model", "write_state"]

FORMAT: Final = 4
SPEC: Final = "spec.json"
OLD_SPEC: Final = "card.json"
TOWER: Final = "tower.safetensors"


def write_model(
    directory: str | Path, spec: Mapping[str, Any], state: State, *, tower: TunedEncoder | None, overwrite: bool
) -> None:
    """Write a model into a folder; see :meth:`stcontrast.models.Predictor.save`."""
    target = Path(directory)
    if target.is_file():
        msg = f"{str(target)!r} is a file: name a folder to save the model to."
        raise FileExistsError(msg)
    if target.exists() and not overwrite:
        msg = f"{str(target)!r} exists; `overwrite=True` replaces the model in it."
        raise FileExistsError(msg)
    if target.exists() and not holds_model(target) and any(target.iterdir()):
        msg = f"{str(target)!r} holds something that is no stcontrast model: it is left alone."
        raise FileExistsError(msg)
    with written_whole(target) as folder:
        folder.mkdir()
        write_state(folder, state)
        if tower is not None:
            tower.save(folder / TOWER)
        (folder / SPEC).write_text(json.dumps({"format": FORMAT, **spec}, indent=2))


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model, of this format or an older one."""
    return (folder / SPEC).is_file() or (folder / OLD_SPEC).is_file()


def read_spec(folder: Path) -> dict[str, Any]:
    """The spec of the model in a folder.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If it was written in another format or by a method that is not there.
    """
    if (folder / OLD_SPEC).is_file() and not (folder / SPEC).is_file():
        _refuse(folder, 1, json.loads((folder / OLD_SPEC).read_text()))
    if not (folder / SPEC).is_file():
        msg = f"No stcontrast model in {str(folder)!r}: `{SPEC}` is absent."
        raise FileNotFoundError(msg)
    spec: dict[str, Any] = json.loads((folder / SPEC).read_text())
    found = spec.pop("format", None)
    if found != FORMAT:
        _refuse(folder, found, spec)
    if spec["method"] not in METHODS:
        msg = f"The model was fitted with the method {spec['method']!r}, which is not there: {sorted(METHODS)}."
        raise ValueError(msg)
    return spec


def _refuse(folder: Path, found: object, spec: Mapping[str, Any]) -> Never:
    made_by = spec.get("versions", {}).get("stcontrast", "of an unknown version")
    msg = (
        f"The model in {str(folder)!r} was saved in format {found}, by stcontrast {made_by}; this version reads format "
        f"{FORMAT}. Fit it again with `stc.tl.fit` and save it, or read it with the version that wrote it."
    )
    raise ValueError(msg)


def read_tower(folder: Path, spec: Mapping[str, Any]) -> TunedEncoder | None:
    """The encoder that was fine-tuned with the model in a folder; `None` where there is none."""
    tuned = [block["encoder"] for block in spec["image_features"] if block["encoder"]["kind"] == "tuned"]
    if not tuned:
        return None
    from stcontrast._models.image_tower import TunedEncoder

    return TunedEncoder.load(folder / TOWER, tuned[0])


def write_state(folder: Path, state: State) -> None:
    """Write nested dictionaries of arrays and plain values: ``state.json`` and ``arrays.npz``."""
    arrays: dict[str, Any] = {}
    plain = _split(state, "", arrays)
    (folder / "state.json").write_text(json.dumps(plain, indent=1))
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, **arrays)


def read_state(folder: Path) -> State:
    """Read what :func:`write_state` wrote."""
    state: State = json.loads((folder / "state.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        for path in arrays.files:
            *parents, name = path.split("/")
            place = state
            for parent in parents:
                place = place[parent]
            place[name] = arrays[path]
    return state


def _split(state: State, prefix: str, arrays: dict[str, Any]) -> State:
    """The plain values of a state; its arrays are put into `arrays`, by path."""
    plain: State = {}
    for name, value in state.items():
        if isinstance(value, dict):
            plain[name] = _split(value, f"{prefix}{name}/", arrays)
        elif isinstance(value, np.ndarray):
            arrays[f"{prefix}{name}"] = value
        else:
            plain[name] = value
    return plain
