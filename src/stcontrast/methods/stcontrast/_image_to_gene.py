"""From the image to the gene space: the parts that are fitted together on one set of spots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from stcontrast._genespace import PrincipalSpace, VaeSpace
from stcontrast._progress import stage
from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns, State, fitted, module_state
from stcontrast.methods._linear import RidgePath, Scaler
from stcontrast.methods._retrieval import Neighbors, combine, most_similar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast._models.batch_vae import BatchAgnosticVAE
    from stcontrast._models.contrastive import ContrastiveModel

__all__ = ["MEMBERS", "ImageToGene"]

MEMBERS: Final = ("linear", "contrast", "joint", "features")
"""Ridge regression; the read-out of the contrastive model; retrieval in its joint embedding; retrieval by features."""

# of the retrievals: by features the nearest count most, in the joint embedding all alike
K_JOINT: Final = 20
K_FEATURES: Final = 100
TEMPERATURE: Final = 0.05
N_FEATURE_AXES: Final = 64
# spots that are kept to retrieve from: more would make the cost quadratic
MAX_BANK: Final = 20_000
# spots whose features are scaled at once to be embedded
SPOTS_AT_ONCE: Final = 8192


class ImageToGene(Learns):
    """Gene space, contrastive model and regressions, fitted on the same spots.

    Parameters
    ----------
    gene_space
        ``"axes"``, ``"vae"``, or a trained model.
    n_coordinates
        Its dimensions.
    vae_epochs
        Length of the VAE's training.
    penalty
        Penalty of the ridge regression.
    seed
        Seed of all of it.
    **contrast
        Options of :class:`~stcontrast.models.ContrastiveModel`.
    """

    learnt: ClassVar[tuple[str, ...]] = ("scaler", "space", "linear", "arrays", "level", "reference")

    def __init__(
        self,
        *,
        gene_space: str | BatchAgnosticVAE,
        n_coordinates: int,
        vae_epochs: int | None,
        penalty: float,
        seed: int,
        **contrast: Any,
    ) -> None:
        self.penalty = penalty
        self.seed = seed
        self.contrast = contrast
        self.scaler = Scaler(unit=True)
        given = None if isinstance(gene_space, str) else gene_space
        self.space: PrincipalSpace | VaeSpace = (
            PrincipalSpace(n_coordinates=n_coordinates)
            if gene_space == "axes"
            else VaeSpace(n_latent=n_coordinates, max_epochs=vae_epochs, seed=seed, given=given)
        )
        self.linear = RidgePath()
        self.model: ContrastiveModel | None = None
        self.arrays: dict[str, NDArray[Any]] = {}
        self.level = self.reference = np.zeros(0, dtype=np.float32)

    def fit(self, spots: Spots, *, overwrite_design: bool = False) -> None:
        """Fit the gene space on all counts, those of the gene side too, and the rest on spots with image and counts.

        Parameters
        ----------
        spots
            Training spots.
        overwrite_design
            Use the memory of their design, which is of no use afterwards.
        """
        from sklearn.utils.extmath import randomized_svd

        from stcontrast._models.contrastive import ContrastiveModel

        self.space.fit(spots.with_counts())
        paired = spots.with_image_and_counts()
        coordinates = self.space.encode(paired)
        deviation = coordinates.std(axis=0) + np.float32(1e-6)
        scaled = self.scaler.fit(paired).scaled(paired, overwrite=overwrite_design)
        learnt = replace(paired, target=coordinates)
        with stage("ridge regression"):
            self.linear = RidgePath().fit(scaled, learnt)
        standardized = coordinates / deviation
        self.model = ContrastiveModel(scaled.shape[1], coordinates.shape[1], seed=self.seed, **self.contrast)
        self.model.train(scaled, standardized, slide=paired.slide)
        bank = _drawn(paired, seed=self.seed)
        kept = scaled[bank]
        _, _, right = randomized_svd(kept, min(N_FEATURE_AXES, *kept.shape), random_state=self.seed)
        level, of_slide = learnt.slide_means()
        self.arrays = {
            "deviation": deviation, "rotation": right.T.astype(np.float32), "bank": bank.astype(np.int64),
            # a neighbour says where on its slide it stands, not where its slide does
            "coordinates": (coordinates - of_slide + level)[bank], "image": self.model.embed_image(kept),
            "gene": self.model.embed_genes(standardized[bank]),
        }  # fmt: skip
        self.arrays["features"] = self._rotated(kept)
        levels = [paired.observed[rows].mean(axis=0) for rows in rows_by_slide(paired.slide)]
        self.level = np.mean(levels, axis=0, dtype=np.float32)
        decoded = [self.space.decode(coordinates[rows]).mean(axis=0) for rows in rows_by_slide(paired.slide)]
        self.reference = np.mean(decoded, axis=0, dtype=np.float32)

    def predict(self, spots: Spots) -> dict[str, NDArray[np.float32]]:
        """Gene coordinates (n_spots, n_coordinates) by every member."""
        a = fitted(self.arrays or None, needs="counts")
        model = fitted(self.model, needs="counts")
        scaled = self.scaler.scaled(spots)
        by_features, cosine = most_similar(self._rotated(scaled), a["features"], k=K_FEATURES)
        weight = np.exp((cosine - cosine[:, :1]) / np.float32(TEMPERATURE))
        weight /= weight.sum(axis=1, keepdims=True)
        joint, _ = most_similar(model.embed_image(scaled), a["image"], k=K_JOINT)
        return {
            "linear": self.linear.predict(scaled, self.penalty),
            "contrast": model.predict_gene(scaled) * a["deviation"],
            "joint": combine(Neighbors(joint, np.full(joint.shape, 1 / joint.shape[1])), a["coordinates"]),
            "features": combine(Neighbors(by_features, weight), a["coordinates"]),
        }

    def decode(self, coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes) at the level of the slides with an image; the gene side may have another."""
        expression = self.space.decode(coordinates)
        expression += self.level - self.reference
        return expression

    def embed_image(self, spots: Spots) -> NDArray[np.float32]:
        """Joint embedding of the image side (n_spots, n_embedding), unit length."""
        model, found = fitted(self.model, needs="counts"), []
        for start in range(0, len(spots), SPOTS_AT_ONCE):
            part = np.arange(start, min(start + SPOTS_AT_ONCE, len(spots)))
            found.append(model.embed_image(self.scaler.scaled(spots, part)))
        return np.concatenate(found)

    def embed_genes(self, spots: Spots) -> NDArray[np.float32]:
        """Joint embedding of the gene side (n_measured, n_embedding), unit length."""
        model = fitted(self.model, needs="counts")
        return model.embed_genes(self.space.encode(spots) / self.arrays["deviation"])

    def neighbors(self, spots: Spots) -> Neighbors:
        """Training spots, rows among those with counts, that retrieval in the joint embedding rests on."""
        found, _ = self.search(self.embed_image(spots), k=K_JOINT, by="image")
        return Neighbors(found, np.full(found.shape, 1 / found.shape[1]))

    def search(
        self, image: NDArray[np.float32], *, k: int, by: Literal["image", "gene"]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows among the training spots with counts whose image or gene embedding is nearest; and the cosines."""
        found, cosine = most_similar(image, fitted(self.arrays.get(by), needs="counts"), k=k)
        return self.arrays["bank"][found], np.clip(cosine, -1.0, 1.0)

    def state(self) -> State:
        """Everything fitted; nothing where there were no counts."""
        if self.model is None:
            return {}
        return {**super().state(), "model": self.model.spec, "weights": module_state(self.model.module)}

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave."""
        from stcontrast._models.contrastive import ContrastiveModel

        if state:
            super().restore(state)
            self.model = ContrastiveModel.restored(state["model"], state["weights"])

    def _rotated(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit-length features (n_spots, 64) on the bank's principal axes, to retrieve by."""
        rotated = scaled @ self.arrays["rotation"]
        found: NDArray[np.float32] = rotated / np.maximum(np.linalg.norm(rotated, axis=1, keepdims=True), 1e-12)
        return found


def _drawn(spots: Spots, *, seed: int) -> NDArray[np.intp]:
    """Rows of the bank, in order: all, or `MAX_BANK` of them at random."""
    if len(spots) <= MAX_BANK:
        return np.arange(len(spots))
    return np.sort(np.random.default_rng(seed).choice(len(spots), MAX_BANK, replace=False))
