"""BLEEP: expression and image in one space by a linear gene head and similarity targets; prediction by retrieval."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from stcontrast._arguments import NAME, NAMES, Rule, check_fields, whole
from stcontrast.methods._linear import standardizer
from stcontrast.methods.published._contrastive import ContrastiveMethod, ContrastiveOptions
from stcontrast.methods.published._trained import Schedule
from stcontrast.nn import Loss  # noqa: TC001 (read at run time, to check options)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast.nn import PairModule

__all__ = ["Bleep", "BleepOptions"]

logger = logging.getLogger(__name__)

PATHWAYS: Final = Rule(
    "a mapping from names of pathways to lists of genes, not empty",
    lambda value: (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(NAME.holds(k) and NAMES.holds(v) for k, v in value.items())
    ),
)


@dataclass(frozen=True, kw_only=True)
class BleepOptions(ContrastiveOptions):
    """Options of :class:`Bleep`; see :class:`ContrastiveOptions`.

    Parameters
    ----------
    pathways
        Lists of genes by name of the pathway. The gene tower then sees the score of every pathway, the mean over its
        modelled genes, each standardised, instead of expression.
    """

    loss: Loss = "similarity_target"
    normalize: bool = False
    temperature: float = 1.0
    batch_size: int = 512
    max_epochs: int = 150
    pathways: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, pathways=PATHWAYS, batch_size=whole(2))


class Bleep(ContrastiveMethod):
    """Bi-modal contrastive learning for expression prediction.

    Expression enters its projection head as it is; the image's features enter theirs. The similarity-target loss on
    embeddings as they are, temperature 1. A prediction is the mean of the 50 training spots nearest by cosine.
    ``targets="input"`` takes the similarities from the inputs instead, detached: the repaired form. With
    ``loss="info_nce"`` it is plain CLIP. With ``pathways`` the gene tower sees their scores, as in PEaRL.
    """

    name: ClassVar[str] = "bleep"
    trains_tower: ClassVar[bool] = True
    reference: ClassVar[str] = "Xie et al. 2023 (BLEEP, arXiv 2306.01859)"
    options_type: ClassVar[type[ContrastiveOptions]] = BleepOptions
    published: ClassVar[Schedule | None] = Schedule(
        data="liver, four fifths of the spots of three sections", n_spots=5593, n_slides=3, batch_size=512, max_epochs=150,
        n_steps=1500, optimizer="AdamW", learning_rate=1e-3, weight_decay=1e-3, end="lowest loss on a fifth of the spots",
    )  # fmt: skip

    options: BleepOptions

    def fit_genes(self, spots: Spots) -> None:
        """Which modelled genes are in which pathway, and the scale of genes and of scores."""
        pathways = self.options.pathways
        if pathways is None:
            return
        member = np.array(
            [[gene in set(genes) for genes in pathways.values()] for gene in spots.genes], dtype=np.float32
        )
        known = member.any(axis=0)
        if not known.any():
            msg = (
                f"No gene of `pathways` is among the {len(spots.genes)} genes that are modelled, such as "
                f"{', '.join(list(spots.genes)[:3])}. Give names of genes as in the data, or more genes (`n_genes`)."
            )
            raise ValueError(msg)
        if not known.all():
            left_out = [name for name, here in zip(pathways, known, strict=True) if not here]
            logger.warning("No gene of these pathways is modelled; they are left out: %s.", ", ".join(left_out))
        self.arrays["gene_center"], self.arrays["gene_scale"] = standardizer(spots.target)
        self.arrays["member"] = member[:, known] / member[:, known].sum(axis=0)
        center, scale = standardizer(self._scores(spots))
        self.arrays |= {"score_center": center, "score_scale": scale}

    def gene_input(self, spots: Spots) -> NDArray[np.float32]:
        """Expression of measured spots, or standardised scores of the pathways (n_spots, k)."""
        if self.options.pathways is None:
            return spots.target
        return (self._scores(spots) - self.arrays["score_center"]) / self.arrays["score_scale"]

    def _scores(self, spots: Spots) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = (
            (spots.target - self.arrays["gene_center"]) / self.arrays["gene_scale"] @ self.arrays["member"]
        )
        return scores

    def build(self, *, n_image: int, n_gene: int, n_targets: int) -> PairModule:
        """Two projection heads."""
        from stcontrast.nn import HeadPair

        del n_targets
        options = self.options
        return HeadPair(
            self.contrast(), n_image=n_image, n_gene=n_gene, n_embedding=options.n_embedding, dropout=options.dropout
        )
