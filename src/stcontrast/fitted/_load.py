"""Models that were saved: in a folder, or on the Hugging Face hub."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stcontrast._arguments import NAME, checked
from stcontrast._files import holds_model, read_folder, unreadable
from stcontrast.fitted._hub import downloaded
from stcontrast.fitted._model import KIND, TOWER, Predictor
from stcontrast.fitted._spec import check_spec
from stcontrast.methods._base import METHODS

if TYPE_CHECKING:
    from stcontrast._models.image_tower import TunedEncoder

__all__ = ["as_model", "from_hub", "load"]


@checked()
def load(directory: str | PathLike[str], *, allow_download: bool = False) -> Predictor:
    """Load a model that :meth:`~stcontrast.models.Predictor.save` wrote.

    Parameters
    ----------
    directory
        The model's folder.
    allow_download
        Whether the model may download the weights of its image encoder, from the hub or library that it names, when it
        has to compute features. By default it may not: only weights on this machine are used, and no web address in
        the model is contacted.

    Returns
    -------
    The model, ready to predict. Nothing in the folder is executed, and no path in it is followed.

    Raises
    ------
    FileNotFoundError
        If there is no model in the folder.
    NotADirectoryError
        If it is a file.
    ValueError
        If the model has another format, uses a method that is not available, or was truncated or changed after it was
        saved.

    Examples
    --------
    >>> import stcontrast as stc
    >>> model = stc.models.load("model_dir")  # doctest: +SKIP
    >>> stc.tl.predict_expression(sdata, model)  # doctest: +SKIP
    """
    folder = Path(directory)
    if folder.is_file():
        msg = f"{str(folder)!r} is a file: name the folder that the model was saved to."
        raise NotADirectoryError(msg)
    spec, state = read_folder(folder, KIND)
    with unreadable(folder):
        check_spec(spec)
        if spec["method"] not in METHODS:
            msg = f"it was fitted with the method {spec['method']!r}, which is not available: {sorted(METHODS)}"
            raise ValueError(msg)
        model = Predictor(METHODS[spec["method"]](**spec["method_spec"]), spec)
        model.restore(state)
        model.tower = _read_tower(folder, spec, allow_download=allow_download)
    model.allow_download = allow_download
    return model


@checked(repo_id=NAME)
def from_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, allow_download: bool = False
) -> Predictor:
    """Load a model from the Hugging Face hub.

    Only JSON and safetensors are downloaded, and they are read as by :func:`load`: nothing is executed.

    Parameters
    ----------
    repo_id
        Repository, ``"owner/name"``, that :meth:`~stcontrast.models.Predictor.push_to_hub` wrote.
    revision
        Branch, tag or commit; the newest version by default. Name a commit for results that can be reproduced.
    token
        Token of the hub, for a private repository; by default that of this machine.
    allow_download
        Whether the model may download the weights of its image encoder; see :func:`load`.

    Returns
    -------
    The model, ready to predict.

    Raises
    ------
    ValueError
        If `repo_id` is not of the form ``"owner/name"``, there is no such repository or revision, or the model cannot be
        read.
    FileNotFoundError
        If the repository holds no stcontrast model.
    PermissionError
        If the hub refuses access.
    ConnectionError
        If the hub cannot be reached.

    Examples
    --------
    >>> import stcontrast as stc
    >>> model = stc.models.from_hub("my-lab/breast-visium", revision="v1")  # doctest: +SKIP
    """
    with downloaded(repo_id, revision=revision, token=token) as folder:
        if not holds_model(folder):
            msg = f"The repository {repo_id!r} holds no stcontrast model."
            raise FileNotFoundError(msg)
        return load(folder, allow_download=allow_download)


def _read_tower(folder: Path, spec: dict[str, Any], *, allow_download: bool) -> TunedEncoder | None:
    """The encoder that was fine-tuned with the model in a folder; `None` where there is none."""
    tuned = [block["encoder"] for block in spec["image_features"] if block["encoder"]["kind"] == "tuned"]
    if not tuned:
        return None
    from stcontrast._models.image_tower import TunedEncoder

    return TunedEncoder.load(folder / TOWER, tuned[0], allow_download=allow_download)


def as_model(model: Predictor | str | PathLike[str]) -> Predictor:
    """A fitted model, or the one in a folder.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(model, str | PathLike):
        return load(model)
    if not isinstance(model, Predictor):
        msg = (
            "`model` must be what `stc.tl.fit` returned, or the folder that it was saved to; found "
            f"{type(model).__name__}."
        )
        raise TypeError(msg)
    return model
