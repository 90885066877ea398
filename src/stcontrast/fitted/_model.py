"""The model that `fit` returns, whatever the method: predict, save, and a card that says what it is."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._data.design import build_design
from stcontrast._data.spots import View
from stcontrast._files import content_hash, written_whole
from stcontrast.fitted._calibration import Calibration, calibrate
from stcontrast.methods._arrays import load_arrays, save_arrays
from stcontrast.methods._base import METHODS

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from stcontrast._data.folds import Folds
    from stcontrast._data.spots import TrainingData
    from stcontrast._models.image_tower import TunedEncoder
    from stcontrast.methods._base import Method

__all__ = ["Prediction", "Predictor", "Retrieved"]

logger = logging.getLogger(__name__)

FORMAT: Final = 1
TOWER: Final = "tower.safetensors"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of the spots of some slides.

    Attributes
    ----------
    expression, lower, upper
        log(1 + counts per 10 000) and its interval (n_spots, n_genes); `None` for a model without counts.
    proba
        Probability of every class (n_spots, n_classes); `None` for a model without labels.
    in_distribution
        Whether a spot looks like those of the training slides (n_spots,).
    """

    expression: NDArray[np.float32] | None
    lower: NDArray[np.float32] | None
    upper: NDArray[np.float32] | None
    proba: NDArray[np.float32] | None
    in_distribution: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Training spots that predictions by retrieval are made of.

    Attributes
    ----------
    spots
        Their names in `obs_names` (n_spots, k), nearest first.
    weights
        Their weights (n_spots, k), summing to 1.
    effective_k
        How many of them a prediction really rests on (n_spots,): 1 / Σ weights².
    donors
        Weight that comes from each donor (n_spots × n_donors).
    """

    spots: NDArray[np.str_]
    weights: NDArray[np.float64]
    effective_k: NDArray[np.float64]
    donors: pd.DataFrame


@dataclass(slots=True)
class Predictor:
    """A fitted model.

    Made by :func:`stcontrast.tl.fit`, read by :func:`stcontrast.models.load`.

    Attributes
    ----------
    method
        The fitted method.
    card
        What the model is: method, genes in order, classes, normalisation, encoder, fields in µm, donors and slides it
        was trained on, seed, package versions, scores on held-out groups.
    bank
        Names and donors of the training spots with counts, in the order that retrieval counts them.
    tower
        The encoder that was fine-tuned with it; `None` where the encoder was used as it is.
    """

    method: Method
    card: dict[str, Any]
    calibration: Calibration = field(repr=False)
    bank: dict[str, NDArray[Any]] = field(repr=False)
    tower: TunedEncoder | None = field(default=None, repr=False)

    @classmethod
    def fit(
        cls,
        method: Method,
        data: TrainingData,
        folds: Folds,
        card: dict[str, Any],
        *,
        features: NDArray[np.float32],
        names: NDArray[np.str_],
    ) -> Predictor:
        """Fit a method on training spots with these image features and names; calibrate it on held-out predictions."""
        held = method.fit(data, folds)
        calibration, scores = calibrate(held, data, features, folds)
        bank = {"spot": names[data.measured], "donor": data.donor[data.measured]}
        made = {"method": method.name, "oracle": method.oracle, "hyper": method.hyper}
        return cls(method, {**card, **made, **scores}, calibration, bank)

    @property
    def genes(self) -> list[str]:
        """Modelled genes, in the order of every prediction."""
        return list(self.card["genes"])

    @property
    def classes(self) -> list[str]:
        """Subtypes, in the order of the probabilities."""
        return list(self.card["classes"])

    @property
    def model_id(self) -> str:
        """Hash of the card, which tells this model from another."""
        return content_hash([self.card])[:12]

    @property
    def has_expression(self) -> bool:
        """Whether it was trained with counts."""
        return bool(self.card["genes"])

    def view(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        depth: NDArray[np.float64] | None = None,
    ) -> View:
        """What the method sees of spots with these image features; see :meth:`predict`."""
        if features.shape[1] != self.card["n_features"]:
            msg = (
                f"The model was trained on {self.card['n_features']} image features a spot, found {features.shape[1]}. "
                f"Its encoder: {self.card['image_features']}."
            )
            raise ValueError(msg)
        if self.method.oracle and depth is None:
            msg = f"The method {self.method.name!r} is an oracle: it needs the measured depth of the spots it predicts."
            raise ValueError(msg)
        design = build_design(
            np.asarray(features, dtype=np.float32), slide, xy,
            n_neighbors=self.card["n_neighbors"], standardize=self.card["standardize"],
        )  # fmt: skip
        return View(design=design, slide=slide, xy=xy, depth=depth if self.method.oracle else None)

    def predict(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        depth: NDArray[np.float64] | None = None,
    ) -> Prediction:
        """Predict from image features.

        Parameters
        ----------
        features
            Image features (n_spots, n_features) of the encoder and fields in the card.
        slide
            Slide of each spot (n_spots,).
        xy
            Centres of the spots (n_spots, 2), comparable within a slide.
        depth
            Measured counts of each spot (n_spots,), for an oracle alone; any other method is never shown them.

        Returns
        -------
        Expression with its interval, class probabilities, and whether the spots look familiar.

        Raises
        ------
        ValueError
            If the number of features differs from the training's, or an oracle is not given the depth.
        """
        return self.predict_view(self.view(features, slide=slide, xy=xy, depth=depth), features)

    def predict_view(self, view: View, features: NDArray[np.float32]) -> Prediction:
        """Predict spots whose design has been built, from it and their image features (n_spots, n_features)."""
        known = self.calibration.is_familiar(view.design, np.asarray(features, dtype=np.float32))
        proba = self.method.predict_proba(view) if self.classes else None
        if not self.has_expression:
            return Prediction(None, None, None, proba, known)
        expression = np.maximum(self.method.predict_expression(view), 0.0)
        half = self.calibration.half_width
        return Prediction(expression, np.maximum(expression - half, 0.0), expression + half, proba, known)

    def neighbors(
        self, features: NDArray[np.float32], *, slide: NDArray[np.int64], xy: NDArray[np.float64]
    ) -> Retrieved:
        """Which training spots a prediction by retrieval is made of.

        Parameters
        ----------
        features, slide, xy
            As in :meth:`predict`.

        Returns
        -------
        Neighbours of every spot, how many it really rests on, and from which donors.

        Raises
        ------
        ValueError
            If the method does not retrieve, or the number of features differs from the training's.

        Examples
        --------
        >>> found = model.neighbors(features, slide=slide, xy=xy)  # doctest: +SKIP
        >>> found.donors.mean()  # doctest: +SKIP
        """
        import pandas as pd

        found = self.method.neighbors(self.view(features, slide=slide, xy=xy))
        donors = self.card["donors"]
        histogram = pd.DataFrame(found.histogram(self.bank["donor"], len(donors)), columns=pd.Index(donors))
        return Retrieved(self.bank["spot"][found.ids], found.weights, found.effective_k, histogram)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the model into a folder: JSON, npz and safetensors, and the VAE in scvi-tools' own format.

        Parameters
        ----------
        directory
            Folder to make.
        overwrite
            Replace a model that is there. A folder that holds anything else is never replaced.

        Raises
        ------
        FileExistsError
            If the folder is there and `overwrite` is off, or holds something that is no stcontrast model.
        """
        target = Path(directory)
        if target.exists() and not overwrite:
            msg = f"{str(target)!r} exists; `overwrite=True` replaces the model in it."
            raise FileExistsError(msg)
        if target.exists() and any(target.iterdir()) and not (target / "card.json").exists():
            msg = f"{str(target)!r} holds something that is no stcontrast model: it is left alone."
            raise FileExistsError(msg)
        with written_whole(target) as folder:
            (folder / "method").mkdir(parents=True)
            self.method.save_parts(folder / "method")
            save_arrays(folder / "calibration.npz", self.calibration.arrays())
            save_arrays(folder / "bank.npz", self.bank)
            if self.tower is not None:
                self.tower.save(folder / TOWER)
            (folder / "card.json").write_text(json.dumps({"format": FORMAT, **self.card}, indent=2))

    @classmethod
    def load(cls, directory: str | Path) -> Predictor:
        """Read a saved model; see :func:`stcontrast.models.load`."""
        folder = Path(directory)
        if not (folder / "card.json").is_file():
            msg = f"No stcontrast model in {str(folder)!r}: `card.json` is absent."
            raise FileNotFoundError(msg)
        card = json.loads((folder / "card.json").read_text())
        if card.pop("format", None) != FORMAT:
            msg = f"The model in {str(folder)!r} was written in another format, by stcontrast {card['versions']['stcontrast']}."
            raise ValueError(msg)
        if card["method"] not in METHODS:
            msg = f"The model was fitted with the method {card['method']!r}, which is not installed: {sorted(METHODS)}."
            raise ValueError(msg)
        method = METHODS[card["method"]](**card["hyper"])
        method.load_parts(folder / "method")
        calibration = Calibration.from_arrays(load_arrays(folder / "calibration.npz"))
        tower = _read_tower(folder, card)
        return cls(method, card, calibration, load_arrays(folder / "bank.npz"), tower)


def _read_tower(folder: Path, card: dict[str, Any]) -> TunedEncoder | None:
    spec = card["image_features"].get("encoder", {})
    if spec.get("kind") != "tuned":
        return None
    from stcontrast._models.image_tower import TunedEncoder

    return TunedEncoder.load(folder / TOWER, spec)
