"""`history`: draw the losses of a training, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from stcontrast._arguments import TEXT, checked, listed, whole
from stcontrast.fitted import Predictor
from stcontrast.pl._colors import CLASS_COLORS, ink
from stcontrast.pl._layout import finish, given_titles, plain_panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast._models.contrastive import ContrastiveModel

__all__ = ["history"]

EPOCH: Final = "epoch"
CHANCE: Final = "chance"
CONTRAST: Final = "contrastive"
HELD_OUT: Final = "held_out_"
# a sum of the others, or none
LEFT_OUT: Final = (EPOCH, CHANCE)
WORDS: Final = {
    CONTRAST: "contrastive loss",
    "elbo": "negative ELBO",
    "kl": "Kullback-Leibler divergence",
    "loss": "loss, all parts together",
    "reconstruction": "reconstruction loss",
    "squared_error": "squared error",
}
NAMES: Final = listed(TEXT, what="the name of a loss, or a list of names", alone=True)


@checked(losses=NAMES, ncols=whole(1))
def history(
    model: Predictor | ContrastiveModel | BatchAgnosticVAE,
    *,
    losses: str | Sequence[str] | None = None,
    title: str | Sequence[str] | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | NDArray[Any] | None:
    """Draw the losses of a training, epoch by epoch: one panel for each loss of each network.

    If a loss still falls steeply at the end, train for more epochs. The dashed line is the contrastive loss of a
    guess: a loss that stays there means that the network has learned nothing. Losses on held-out spots are drawn too,
    if there are any.

    Parameters
    ----------
    model
        A fitted or loaded model (the values are in its `history`), or a network that was trained alone.
    losses
        Loss or losses to draw, columns of the tables in `history`; all by default.
    title
        Title of every panel, or one for all.
    ncols
        Largest number of panels in a row.
    ax
        Axes to draw on, one for every panel. A new figure by default.
    show
        Show the figure. The default is ``scanpy.settings.autoshow``, or not to show it if `ax` is given.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if `return_fig`; else `None` if it was shown; else the axes, an array (n_panels,).

    Raises
    ------
    KeyError
        If there is no such loss. The message lists those that exist.
    TypeError
        If `model` is not a model.
    ValueError
        If the model has no history: its method is not trained in epochs, or an earlier version saved it.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", options={"max_epochs": 5})
    >>> axes = stc.pl.history(model, show=False)
    >>> axes.shape
    (2,)
    """
    panels = _panels(_tables(model), losses)
    titles = given_titles(title, n_slides=1, n_panels=len(panels)) or [
        [f"{network}\n{_words(name)}".strip() for network, name, _ in panels]
    ]
    figure, axes = plain_panels(titles[0], size=(3.2, 2.6), ncols=ncols, ax=ax)
    color = ink(figure)
    for panel, (_, name, table) in zip(axes, panels, strict=True):
        epochs = table[EPOCH].to_numpy() if EPOCH in table else np.arange(1, len(table) + 1)
        style = {"marker": "o" if len(table) < 10 else None, "markersize": 3}
        held_out = f"{HELD_OUT}{name}" in table
        panel.plot(epochs, table[name], color=CLASS_COLORS[3], label="training spots", **style)
        if held_out:
            panel.plot(epochs, table[f"{HELD_OUT}{name}"], color=CLASS_COLORS[2], label="held-out spots", **style)
        if name == CONTRAST and CHANCE in table:
            panel.plot(epochs, table[CHANCE], color=color, linewidth=1, linestyle="--", label="a guess")
        panel.set_xlabel(EPOCH)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.margins(y=0.1)
        if len(panel.lines) > 1:
            panel.legend(frameon=False, fontsize=8, labelcolor=color)
    return finish(figure, axes, show=show, return_fig=return_fig, own_figure=ax is None)


def _tables(model: Any) -> Mapping[str, pd.DataFrame]:
    """Tables of losses by the name of the network."""
    if isinstance(model, Predictor):
        if not model.history:
            msg = (
                f"The model has no training history: the method {model.method.name!r} is not trained in epochs, or "
                "the model was saved by an earlier version."
            )
            raise ValueError(msg)
        return model.history
    if not hasattr(model, "history"):
        msg = f"`model` must be what `stc.tl.fit` returned, or a network, found {type(model).__name__}."
        raise TypeError(msg)
    found = model.history
    if found is not None and not isinstance(found, pd.DataFrame):
        from stcontrast._models.batch_vae import vae_losses

        found = vae_losses(found)
    if found is None or not len(found):
        msg = f"The {type(model).__name__} has not been trained: call its `train()` first."
        raise ValueError(msg)
    return {"": found}


def _panels(
    tables: Mapping[str, pd.DataFrame], losses: str | Sequence[str] | None
) -> list[tuple[str, str, pd.DataFrame]]:
    """Network, loss and table of every panel."""
    there = [
        (network, name, table)
        for network, table in tables.items()
        for name in map(str, table.columns)
        if name not in LEFT_OUT and name.removeprefix(HELD_OUT) not in set(table.columns) - {name}
    ]
    if losses is None:
        return there
    wanted = [losses] if isinstance(losses, str) else list(dict.fromkeys(losses))
    absent = [name for name in wanted if name not in {known for _, known, _ in there}]
    if absent:
        msg = f"`losses`: the history has no {absent}; it has {list(dict.fromkeys(name for _, name, _ in there))}."
        raise KeyError(msg)
    return [panel for name in wanted for panel in there if panel[1] == name]


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))
