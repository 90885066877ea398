"""Read any saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast.fitted._model import Predictor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load"]


def load(directory: str | Path) -> Predictor:
    """Read a model that :meth:`~stcontrast.models.Predictor.save` wrote, of whatever method.

    Parameters
    ----------
    directory
        The model's folder. Load only folders that you trust: the VAE inside is in scvi-tools' format, which can
        carry code.

    Returns
    -------
    The model, ready to predict.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If it was written in another format or by a method that is not there.

    Examples
    --------
    >>> import stcontrast as stc
    >>> model = stc.models.load("model_dir")  # doctest: +SKIP
    >>> stc.tl.predict_expression(sdata, model)  # doctest: +SKIP
    """
    return Predictor.load(directory)
