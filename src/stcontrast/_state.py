"""What fitting sets: nested dictionaries of arrays and plain values, written and read in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Learns", "State", "fitted", "module_state", "restore_module"]

type State = dict[str, Any]


class Learns:
    """A part that is fitted: names the attributes that fitting sets.

    An attribute is an array, a plain value, a dictionary or list of them, or a part with a state of its own.
    """

    learnt: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that fitting sets."""

    def state(self) -> State:
        """What was learnt: arrays and plain values by name, parts as dictionaries of their own."""
        return {name: _state_of(getattr(self, name)) for name in self.learnt}

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave of another object that was made with the same arguments."""
        for name in self.learnt:
            setattr(self, name, _restored(getattr(self, name), state[name]))


def fitted[T](part: T | None, *, needs: Literal["counts", "labels"]) -> T:
    """A part that is there only where the training spots had counts, or labels.

    Raises
    ------
    ValueError
        If it is not there.
    """
    if part is None:
        what = "expression" if needs == "counts" else "subtype"
        msg = f"The model was trained without {needs}: it predicts no {what}."
        raise ValueError(msg)
    return part


def module_state(module: nn.Module) -> State:
    """Weights and buffers of a network as arrays, by name."""
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


def restore_module(module: nn.Module, state: State) -> None:
    """Put weights and buffers back into a network of the same shape, ready to predict."""
    import torch

    weights = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    # in place of those of a network that was made without memory, on the meta device
    module.load_state_dict(weights, assign=any(value.is_meta for value in module.state_dict().values()))
    module.eval()


def _state_of(value: Any) -> Any:
    if isinstance(value, Learns):
        return value.state()
    if isinstance(value, dict):
        return {str(name): _state_of(item) for name, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, Learns) for item in value):
        return {str(i): _state_of(item) for i, item in enumerate(value)}
    return value.item() if isinstance(value, np.generic) else value


def _restored(before: Any, state: Any) -> Any:
    """An attribute with its state: parts are filled, everything else is replaced."""
    if isinstance(before, Learns):
        before.restore(state)
        return before
    items = dict(enumerate(before)) if isinstance(before, list) else before if isinstance(before, dict) else {}
    if any(isinstance(item, Learns) for item in items.values()):
        for name, item in items.items():
            item.restore(state[str(name)])
        return before
    return state
