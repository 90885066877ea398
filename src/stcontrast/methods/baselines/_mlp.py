"""The network baseline: image features to expression and subtype, without a gene side and without contrast."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import softmax

from stcontrast._arguments import checked, number
from stcontrast._state import fitted
from stcontrast.methods._base import Method
from stcontrast.methods._linear import Scaler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._data import Spots

__all__ = ["Mlp"]


class Mlp(Method):
    """scikit-learn's multi-layer perceptron, with one hidden layer, for expression and for subtypes.

    A contrast is of use where a method with it is better than this one.

    Parameters
    ----------
    n_hidden
        Width.
    max_epochs
        Length of the training.
    penalty
        Penalty on the squared weights.
    seed
        Seed of weights and batches.
    """

    name: ClassVar[str] = "mlp"
    spotwise: ClassVar[bool] = True
    reference: ClassVar[str] = "Multi-layer perceptron on the image features (scikit-learn)"
    learnt: ClassVar[tuple[str, ...]] = ("scaler", "expression", "classes")

    @checked(penalty=number(least=0))
    def __init__(self, *, n_hidden: int = 128, max_epochs: int = 30, penalty: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.n_hidden = n_hidden
        self.max_epochs = max_epochs
        self.penalty = penalty
        self.scaler = Scaler()
        self.expression: dict[str, NDArray[Any]] = {}
        self.classes: dict[str, NDArray[Any]] = {}

    def fit_parts(self, spots: Spots) -> None:
        """Train both networks."""
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        scaled = self.scaler.fit(spots).scaled(spots)
        options = {
            "hidden_layer_sizes": (self.n_hidden,), "alpha": self.penalty, "max_iter": self.max_epochs,
            "random_state": self.seed,
        }  # fmt: skip
        self.expression, self.classes = {}, {}
        if spots.has_counts:
            rows = spots.measured
            mean, of_spot = spots.slide_means()
            centered = (spots.target - of_spot)[rows]
            deviation = centered.std(axis=0) + np.float32(1e-6)
            # scikit-learn wants a single gene without an axis of its own
            standardized = (centered / deviation)[:, 0] if spots.n_genes == 1 else centered / deviation
            network = _trained(MLPRegressor(**options), scaled[rows], standardized)
            self.expression = {**network, "mean": mean, "deviation": deviation}
        if spots.has_labels:
            known = spots.label >= 0
            label = spots.label[known]
            present = np.unique(label)
            self.classes = {"present": present, "n_classes": np.array(spots.n_classes)}
            if len(present) > 1:
                self.classes |= _trained(MLPClassifier(**options), scaled[known], label)

    def predict_expression(self, spots: Spots) -> NDArray[np.float32]:
        """Expression (n_spots, n_genes), log(1 + counts per 10 000)."""
        a = fitted(self.expression or None, needs="counts")
        found: NDArray[np.float32] = _output(a, self.scaler.scaled(spots)) * a["deviation"] + a["mean"]
        return found.astype(np.float32)

    def predict_proba(self, spots: Spots) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes)."""
        a = fitted(self.classes or None, needs="labels")
        proba = np.zeros((len(spots), int(a["n_classes"])), dtype=np.float32)
        logits = np.zeros((len(spots), 1))
        if "weights0" in a:
            logits = _output(a, self.scaler.scaled(spots))
            # of two classes the network has one output, the log odds of the second
            logits = np.hstack([-logits / 2, logits / 2]) if logits.shape[1] == 1 else logits
        proba[:, a["present"]] = softmax(logits, axis=1)
        return proba


def _trained(network: Any, x: NDArray[np.float32], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Weights and offsets of a network that was trained."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # the length of the training is fixed, not waited for
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        network.fit(x, y)
    layers = zip(network.coefs_, network.intercepts_, strict=True)
    return {
        f"{name}{i}": part
        for i, pair in enumerate(layers)
        for name, part in zip(("weights", "offset"), pair, strict=True)
    }


def _output(a: dict[str, NDArray[Any]], scaled: NDArray[np.float32]) -> NDArray[Any]:
    """Output of one hidden layer of rectified units."""
    hidden = np.maximum(scaled @ a["weights0"] + a["offset0"], 0)
    output: NDArray[Any] = hidden @ a["weights1"] + a["offset1"]
    return output
