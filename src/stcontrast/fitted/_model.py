"""The model that `fit` returns, for every method: predict, save, and a spec that describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from stcontrast._arguments import NAME, check_arguments, checked, one_of
from stcontrast._data import Prediction, Spots
from stcontrast._files import content_hash, output_path, write_folder
from stcontrast._keys import PREDICTION_TABLE
from stcontrast._reading import Keys
from stcontrast._report import write_page
from stcontrast._slides import rows_by_slide
from stcontrast._state import Learns
from stcontrast.fitted._calibration import Calibration
from stcontrast.fitted._hub import card_text, upload
from stcontrast.fitted._moments import StandardizeBy, TrainingMoments
from stcontrast.fitted._report import model_content
from stcontrast.fitted._spec import portable
from stcontrast.methods._base import METHODS, Method

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._data import Fold
    from stcontrast._models.image_tower import TunedEncoder
    from stcontrast._state import State

__all__ = ["KIND", "TOWER", "Predictor", "Retrieved"]

KIND: Final = "Predictor"
TOWER: Final = "tower.safetensors"


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Training spots from which predictions by retrieval are made.

    Attributes
    ----------
    spots
        Their names in `obs_names` (n_spots, k), nearest first.
    weights
        Their weights (n_spots, k), summing to 1.
    effective_k
        Effective number of training spots in a prediction (n_spots,): 1 / Σ weights².
    donors
        Weight that comes from each donor (n_spots × n_donors).
    """

    spots: NDArray[np.str_]
    weights: NDArray[np.float64]
    effective_k: NDArray[np.float64]
    donors: pd.DataFrame


class Predictor(Learns):
    """A fitted model.

    Made by :func:`stcontrast.tl.fit`, read by :func:`stcontrast.models.load`.

    Parameters
    ----------
    method
        The method.
    spec
        Description of the model: method, genes in order, classes, normalisation, image features (encoder and fields in
        µm of every block), widths of their blocks, training donors and slides, seed, package versions, scores on
        held-out groups.

    Attributes
    ----------
    bank
        Names, slides and donors of the training spots with counts, in the order of retrieval.
    moments
        Mean and spread of the image features on the training slides.
    history
        Losses of the last training: for each network a table with one row per epoch. Empty for a method that is not
        trained in epochs. See :func:`stcontrast.pl.history`.
    tower
        The encoder that was fine-tuned with the model; `None` if the encoder was frozen.
    allow_download
        Whether the weights of its image encoder may be downloaded; see :func:`load`.
    """

    learnt: ClassVar[tuple[str, ...]] = ("method", "calibration", "bank", "moments")

    def __init__(self, method: Method, spec: dict[str, Any]) -> None:
        self.method = method
        self.spec = spec
        self.calibration = Calibration()
        self.bank: dict[str, NDArray[Any]] = {}
        self.moments = TrainingMoments()
        self.history: dict[str, pd.DataFrame] = {}
        self.tower: TunedEncoder | None = None
        # the user named the encoder
        self.allow_download = True

    def __repr__(self) -> str:
        return (
            f"Predictor({self.method.name!r}, {len(self.genes)} genes, {len(self.classes)} classes, "
            f"{len(self.spec['donors'])} donors, id {self.model_id})"
        )

    @classmethod
    def fit(cls, method: Method, spots: Spots, folds: Sequence[Fold], spec: dict[str, Any]) -> Predictor:
        """Fit a method on training spots, and calibrate it on out-of-fold predictions."""
        model = cls(method, spec)
        seen, of_folds = spots, folds
        if not method.uses_features:
            # every fold would copy them
            seen = spots.without_features()
            of_folds = [
                replace(fold, spots=seen if fold.spots is spots else fold.spots.without_features()) for fold in folds
            ]
        scores = model.calibration.fit(method.fit(seen, of_folds), spots, folds)
        model.history = method.losses()
        donor = np.unique(spots.donor, return_inverse=True)[1]
        slide = np.array(spots.slides, dtype=np.str_)[spots.slide]
        of_spot = {"spot": spots.name, "slide": slide, "donor": donor}
        model.bank = {name: values[spots.measured] for name, values in of_spot.items()}
        model.spec = {
            **spec,
            "method": method.name,
            "oracle": method.oracle,
            "method_spec": method.spec,
            **scores,
            **method.summary(),
        }
        return model

    def state(self) -> State:
        """What was learnt, and how the training went."""
        # numbers in places, as names of networks may hold a slash
        history = {
            str(i): {"name": name, "columns": list(map(str, table.columns)), "values": table.to_numpy(dtype=np.float64)}
            for i, (name, table) in enumerate(self.history.items())
        }
        return super().state() | {"history": history}

    def restore(self, state: State) -> None:
        """Take what :meth:`state` gave; models that were saved before histories were kept have none."""
        import pandas as pd

        super().restore(state)
        kept = state.get("history", {}).values()
        self.history = {item["name"]: pd.DataFrame(item["values"], columns=item["columns"]) for item in kept}

    @property
    def genes(self) -> list[str]:
        """Modelled genes, in the order of every prediction."""
        return list(self.spec["genes"])

    @property
    def classes(self) -> list[str]:
        """Subtypes, in the order of the probabilities."""
        return list(self.spec["classes"])

    @property
    def model_id(self) -> str:
        """Hash of the spec, which identifies the model. It does not depend on the place of files."""
        return content_hash([portable(self.spec)])[:12]

    @property
    def has_expression(self) -> bool:
        """Whether it was trained with counts."""
        return bool(self.spec["genes"])

    def unseen_spots(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        depth: NDArray[np.float64] | None = None,
        standardize: StandardizeBy = "slide",
        names: Sequence[str] = (),
    ) -> Spots:
        """What the method sees of spots with these image features; see :meth:`predict`.

        `names` are those of the slides, for what is said of them.
        """
        check_arguments({"standardize": standardize}, standardize=one_of("slide", "training"))
        blocks = self.spec["blocks"]
        if features.shape[1] != sum(blocks):
            msg = (
                f"The model was trained on {sum(blocks)} image features per spot, found {features.shape[1]}. "
                f"They were made with: {self.spec['image_features']}."
            )
            raise ValueError(msg)
        shapes = {"features": features.shape[:1], "slide": np.shape(slide), "xy": np.shape(xy)[:1]}
        if len(set(shapes.values())) > 1 or np.shape(xy)[1:] != (2,):
            msg = f"`slide` must be (n_spots,) and `xy` (n_spots, 2); found {np.shape(slide)}, {np.shape(xy)} for {len(features)} spots."
            raise ValueError(msg)
        if n_odd := int((~np.isfinite(features).all(axis=1)).sum()):
            msg = f"The image features of {n_odd} spots hold values that are not finite (NaN, infinite)."
            raise ValueError(msg)
        if self.method.oracle and depth is None:
            msg = f"The method {self.method.name!r} is an oracle: it needs the measured depth of the spots it predicts."
            raise ValueError(msg)
        known = {"depth": depth} if self.method.oracle else {}
        spots = Spots.of(slide, xy, features=np.asarray(features, dtype=np.float32), blocks=blocks, **known)
        n_neighbors = self.spec["n_neighbors"]
        if self.spec["standardize"] == "none" or standardize == "training":
            spots = spots.with_design(n_neighbors=n_neighbors, standardize="none")
            by_training = self.spec["standardize"] == "slide"
            return replace(spots, design=self.moments.standardized(spots.design)) if by_training else spots
        self.warn_of_parts(spots.features, spots.slide, names)
        return spots.with_design(n_neighbors=n_neighbors, standardize="slide")

    def warn_of_parts(self, features: NDArray[np.float32], slide: NDArray[np.int64], names: Sequence[str]) -> None:
        """Say at WARNING which slides are small, or seem to be parts of slides; arguments as of :meth:`predict`."""
        if self.spec["standardize"] == "none":
            return
        for rows in rows_by_slide(slide):
            code = int(slide[rows[0]])
            name = repr(names[code]) if code < len(names) else str(code)
            self.moments.warn_of_part(name, len(rows), features[rows].std(axis=0, dtype=np.float64))

    def predict(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        depth: NDArray[np.float64] | None = None,
        standardize: StandardizeBy = "slide",
        names: Sequence[str] = (),
    ) -> Prediction:
        """Predict from image features.

        Parameters
        ----------
        features
            Image features (n_spots, n_features) of the encoders and fields in the spec, block after block.
        slide
            Slide of each spot (n_spots,).
        xy
            Centres of the spots (n_spots, 2), comparable within a slide.
        depth
            Measured counts of each spot (n_spots,), only for an oracle. No other method sees them.
        standardize
            As in :func:`stcontrast.tl.predict_expression`.
        names
            Names of the slides, for warnings.

        Returns
        -------
        Expression with its interval, class probabilities, and whether the spots are in distribution.

        Raises
        ------
        ValueError
            If the number of features differs from that in training, or `depth` is missing for an oracle.
        """
        return self.predict_spots(
            self.unseen_spots(features, slide=slide, xy=xy, depth=depth, standardize=standardize, names=names)
        )

    def predict_classes(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        depth: NDArray[np.float64] | None = None,
        standardize: StandardizeBy = "slide",
        names: Sequence[str] = (),
    ) -> NDArray[np.float32]:
        """Probability of every class (n_spots, n_classes) alone; parameters and errors as of :meth:`predict`."""
        self.require_classes()
        return self.method.predict_proba(
            self.unseen_spots(features, slide=slide, xy=xy, depth=depth, standardize=standardize, names=names)
        )

    def predict_spots(self, spots: Spots) -> Prediction:
        """Predict spots that have features and a design."""
        found = Prediction.empty(len(spots), n_genes=len(self.genes), n_classes=len(self.classes))
        found.in_distribution = self.calibration.in_distribution(spots)
        if self.classes:
            found.proba = self.method.predict_proba(spots)
        if self.has_expression:
            found.expression = np.maximum(self.method.predict_expression(spots), 0.0)
            found.half_width = self.calibration.half_width
        return found

    def require_expression(self) -> None:
        """Raise a ValueError where the model was trained without counts."""
        if not self.has_expression:
            msg = "The model was trained without counts: it predicts no expression. Use `stc.tl.classify`."
            raise ValueError(msg)

    def require_embedding(self, *, to_search: bool = False) -> None:
        """Raise a ValueError where the model has no joint embedding, or keeps none of its training spots to search."""
        if not self.has_expression:
            msg = "The model was trained without counts: it has no joint embedding of image and genes."
            raise ValueError(msg)
        name = "search" if to_search else "embed"
        # a method that has it brings a function of its own
        if getattr(type(self.method), name) is getattr(Method, name):
            able = sorted(key for key, method in METHODS.items() if getattr(method, name) is not getattr(Method, name))
            lacks = "keeps no joint embedding of its training spots" if to_search else "learns no joint embedding"
            msg = f"The method {self.method.name!r} {lacks}. Fit a model with one of the methods {able}."
            raise ValueError(msg)

    def require_classes(self) -> None:
        """Raise a ValueError where the model was trained without labels."""
        if not self.classes:
            msg = "The model was trained without labels: it predicts no subtypes. Give `label_key` to `stc.tl.fit`."
            raise ValueError(msg)

    def neighbors(
        self,
        features: NDArray[np.float32],
        *,
        slide: NDArray[np.int64],
        xy: NDArray[np.float64],
        standardize: StandardizeBy = "slide",
    ) -> Retrieved:
        """Find the training spots from which a prediction by retrieval is made.

        Parameters
        ----------
        features, slide, xy, standardize
            As in :meth:`predict`.

        Returns
        -------
        Neighbours of every spot, their effective number, and their donors.

        Raises
        ------
        ValueError
            If the method does not retrieve, or the number of features differs from that in training.

        Examples
        --------
        >>> found = model.neighbors(features, slide=slide, xy=xy)  # doctest: +SKIP
        >>> found.donors.mean()  # doctest: +SKIP
        """
        import pandas as pd

        found = self.method.neighbors(self.unseen_spots(features, slide=slide, xy=xy, standardize=standardize))
        donors = self.spec["donors"]
        histogram = pd.DataFrame(found.histogram(self.bank["donor"], len(donors)), columns=pd.Index(donors))
        return Retrieved(self.bank["spot"][found.ids], found.weights, found.effective_k, histogram)

    @checked()
    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Save the model in a separate folder: JSON, safetensors, and a manifest with size and hash of every file.

        The folder is written completely or not at all: an existing model stays until the new one is on the disk. The
        path of a file of encoder weights is not saved.

        Parameters
        ----------
        directory
            Folder to create.
        overwrite
            Replace an existing model. A folder with other files is never replaced.

        Raises
        ------
        FileExistsError
            If the folder exists and `overwrite` is False, or if it holds files that are not of a stcontrast model.
        """
        tower = self.tower
        write_folder(
            directory, KIND, portable(self.spec), self.state(), overwrite=overwrite,
            more=None if tower is None else lambda folder: tower.save(folder / TOWER),
        )  # fmt: skip

    @checked(repo_id=NAME, commit_message=NAME)
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        commit_message: str = "Upload a stcontrast model",
    ) -> str:
        """Upload the model to the Hugging Face hub, with a model card that is made from its spec.

        :func:`stcontrast.models.from_hub` loads it again. The files are those of :meth:`save`. They hold the names of
        the donors, slides and spots of the training data (the card does not), and for methods that retrieve also their
        expression: check that you may share them.

        Parameters
        ----------
        repo_id
            Repository, ``"owner/name"``. It is made if it does not exist.
        private
            Whether a new repository is private. An existing one stays as it is.
        token
            Token of the hub; by default that of ``hf auth login`` or of the variable ``HF_TOKEN``.
        commit_message
            Message of the commit.

        Returns
        -------
        Web address of the commit.

        Raises
        ------
        ValueError
            If `repo_id` is not of the form ``"owner/name"``.
        PermissionError
            If the hub refuses access.
        ConnectionError
            If the hub cannot be reached.

        Examples
        --------
        >>> model.push_to_hub("my-lab/breast-visium")  # doctest: +SKIP
        """
        card = card_text(self.spec, repo_id)
        return upload(self.save, card, repo_id, private=private, token=token, commit_message=commit_message)

    @checked(title=NAME)
    def report(  # noqa: PLR0913
        self,
        path: str | Path,
        data: SpatialData | AnnData | Sequence[SpatialData | AnnData] | None = None,
        *,
        title: str | None = None,
        label_key: str | None = None,
        prediction_key: str = PREDICTION_TABLE,
        table_key: str | None = None,
        layer: str | None = None,
        image_key: str | Mapping[str, str] | None = None,
        um_per_px: float | Mapping[str, float] | None = None,
        library_key: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a report: one self-contained web page, which a browser opens without a network.

        The page says what the model was trained on and what was held out. A table of genes, to search and sort, says
        which genes can be trusted and by which rule. With `data`, maps show observed and predicted expression, and
        annotated and predicted classes (:func:`stcontrast.tl.classify` writes them). The report of a cross-validation
        (:meth:`stcontrast.tl.CrossValidation.report`) says more about new donors.

        Parameters
        ----------
        path
            The page to write; its name ends in ``.html``.
        data
            One object or a list of them, with predictions of this model.
        title
            Title of the page.
        label_key
            Column of `obs` of `data` with the annotated class, for the maps.
        prediction_key, table_key, layer, image_key, um_per_px, library_key
            As in :func:`stcontrast.pl.spatial_pred`.
        overwrite
            Replace an existing file.

        Raises
        ------
        ValueError
            If the name of the page does not end in ``.html``, or a prediction was made by another model.
        FileExistsError
            If the file exists and `overwrite` is False.
        KeyError
            If an object has no prediction, or none has the column `label_key`.

        Examples
        --------
        >>> model.report("report.html", data=sdata)  # doctest: +SKIP
        """
        place = output_path(path, "path", endings=(".html", ".htm"), overwrite=overwrite, what="report")
        keys = Keys(table_key=table_key, layer=layer, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
        if data is not None:
            self.require_expression()
        content = model_content(
            self.spec, self.calibration, self.model_id, data, title=title or "Model", prediction_key=prediction_key,
            label_key=label_key, keys=keys,
        )  # fmt: skip
        write_page(place, content)
