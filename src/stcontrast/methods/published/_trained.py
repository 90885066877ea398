"""What methods with a network that is trained step by step share: options, training, saving, the published schedule."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAliasType, get_args, get_type_hints

import numpy as np

from stcontrast._state import State, fitted, module_state, restore_module
from stcontrast._training import seeded
from stcontrast.methods._base import Method
from stcontrast.methods._linear import standardizer

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from stcontrast._data import Spots
    from stcontrast.nn import SpotModule, SpotTable

__all__ = ["Schedule", "TrainedMethod", "check_choices"]


class Schedule(NamedTuple):
    """A published training; `None` where it is not known.

    Attributes
    ----------
    data
        What it was trained on.
    n_spots, n_slides
        Training spots and slides of it.
    batch_size, max_epochs, n_steps
        Spots in a step, passes, and steps in all.
    optimizer, learning_rate, weight_decay
        How a step is made.
    end
        What ends it.
    """

    data: str
    n_spots: int
    n_slides: int
    batch_size: int
    max_epochs: int | None
    n_steps: int | None
    optimizer: str
    learning_rate: float
    weight_decay: float | None
    end: str


def check_choices(options: Any) -> None:
    """Raise where an option with a list of valid values has another."""
    hints = get_type_hints(type(options))
    for item in fields(options):
        kind = hints[item.name]
        valid = get_args(kind.__value__ if isinstance(kind, TypeAliasType) else kind)
        value = getattr(options, item.name)
        if valid and value not in valid and type(None) not in valid:
            msg = f"Unknown {item.name} {value!r}. Valid options are {', '.join(map(repr, valid))}."
            raise ValueError(msg)


class TrainedMethod(Method):
    """A network over spots that is trained step by step.

    A subclass sets `options_type`, a dataclass with `learning_rate`, `weight_decay`, `batch_size`, `max_epochs` and
    `max_steps` among others, and builds its network in :meth:`build`.

    Parameters
    ----------
    seed
        Seed of all of it.
    **options
        Fields of `options_type`.
    """

    options_type: ClassVar[type[Any]]
    n_neighbors: ClassVar[int] = 0
    n_nearest: ClassVar[int] = 1
    """Nearest spots, the spot included, that its network looks at."""
    published: ClassVar[Schedule | None] = None
    """How it is trained where it was published, if that is known."""
    regresses: ClassVar[bool] = False
    """Whether its network has a regression of expression of its own."""
    network: ClassVar[str] = "contrastive network"
    """What its network is called where one waits for it."""

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed)
        self.options = self.options_type(**options)
        self.module: Any = None
        self.arrays: dict[str, NDArray[Any]] = {}
        self.history: pd.DataFrame | None = None

    @classmethod
    def option_names(cls) -> set[str]:
        """Its options, without the seed."""
        return {item.name for item in fields(cls.options_type)}

    @property
    def spec(self) -> dict[str, Any]:
        """Arguments that make the same method again."""
        return {**asdict(self.options), "seed": self.seed}

    @abstractmethod
    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> SpotModule:
        """A fresh network, for so many image features, inputs of a gene tower and genes."""

    def optimizer(self, module: Any) -> tuple[Optimizer, LRScheduler | None]:
        """Optimiser and schedule (steps are epochs) of the network; AdamW by default."""
        import torch

        options = self.options
        # a temperature that is learnt is no weight: nothing draws it to 1
        named = list(module.named_parameters())
        of_contrast = [weight for name, weight in named if name.startswith("contrast.")]
        weights = [weight for name, weight in named if not name.startswith("contrast.")]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": of_contrast, "weight_decay": 0.0}]
        rate, decay = options.learning_rate, options.weight_decay
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True), None

    def scale_to(self, spots: Spots) -> None:
        """Forget what was learnt, and take the scale of the image features of these spots."""
        center, scale = standardizer(spots.design)
        self.arrays, self.module = {"center": center, "scale": scale}, None

    def train(self, table: SpotTable) -> None:
        """Build the network and train it on the spots of a table."""
        from stcontrast._models.contrastive import train_pairs

        options = self.options
        sizes = {
            "n_image": table.image.shape[1], "n_gene": table.gene.shape[1], "n_targets": table.target.shape[1],
        }  # fmt: skip
        with seeded(self.seed):
            module = self.build(**sizes)
            module.expression_loss = getattr(options, "expression_loss", module.expression_loss)
            self.history = train_pairs(
                module, table, batch_size=options.batch_size, max_epochs=options.max_epochs,
                max_steps=options.max_steps, optimizer=self.optimizer, name=self.network,
            )  # fmt: skip
        self.module = module
        self.arrays["sizes"] = np.array(list(sizes.values()))
        if module.expression_loss == "rank" and self.regresses:
            # the loss leaves the level of every gene open
            self.arrays["level"] = self._apply(table, "regress").mean(axis=0)

    def regress(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes) by the network's own regression, around the mean of the training slides."""
        fitted(self.module, needs="counts")
        found = self._apply(self._table(spots), "regress") - self.arrays.get("level", np.float32(0))
        return (found + self.arrays["mean"]).astype(np.float32)

    def losses(self) -> dict[str, pd.DataFrame]:
        """Losses of the network."""
        return {} if self.history is None else {self.network: self.history}

    def state(self) -> State:
        """The network, and what is named in `learnt`."""
        return super().state() | ({} if self.module is None else {"towers": module_state(self.module)})

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave."""
        super().restore(state)
        if "towers" in state:
            n_image, n_gene, n_targets = (int(size) for size in self.arrays["sizes"])
            with seeded(self.seed):
                self.module = self.build(n_image=n_image, n_gene=n_gene, n_targets=n_targets)
            restore_module(self.module, state["towers"])

    def _table(
        self, spots: Spots, *, gene: NDArray[np.float32] | None = None, target: NDArray[np.float32] | None = None
    ) -> SpotTable:
        from stcontrast.nn import SpotTable

        scaled = (spots.design - self.arrays["center"]) / self.arrays["scale"]
        return SpotTable.of(scaled, spots.slide, spots.xy, n_nearest=self.n_nearest, gene=gene, target=target)

    def _apply(self, table: SpotTable, what: Literal["embed_image", "embed_genes", "regress"]) -> NDArray[np.float32]:
        from stcontrast._models.contrastive import embed_pairs

        if self.module is None:
            msg = "The method has not been fitted with counts."
            raise RuntimeError(msg)
        out: NDArray[np.float32] = embed_pairs(self.module, table, getattr(self.module, what)).numpy()
        return out
