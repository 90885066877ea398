"""The batch-agnostic variational autoencoder as a scvi-tools model."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import scvi
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LabelsWithUnlabeledObsField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model import SCVI

from stcontrast._arguments import check_arguments, one_of
from stcontrast._models.batch_vae.checkpoint import check_checkpoint
from stcontrast._models.batch_vae.counts import CountsField, check_categories, check_genes, check_layer
from stcontrast._models.batch_vae.decoding import ClassesMixin, DecodingMixin, check_classes
from stcontrast._models.batch_vae.encoding import EncodingMixin
from stcontrast._models.batch_vae.minibatches import SLIDE_KEY, SlideField, SpotLoader
from stcontrast._models.batch_vae.module import BatchAgnosticVAEModule
from stcontrast._models.batch_vae.training import HeldOutGroupsMixin
from stcontrast._training import quiet_loggers, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from typing import Self

    from anndata import AnnData

__all__ = ["BatchAgnosticVAE"]

logger = logging.getLogger(__name__)

SAVED_ADATA: Final = "adata.h5ad"
SAVED_MODEL: Final = "model.pt"
# scvi-tools logs that a folder on disk has been downloaded
DOWNLOAD_LOGGER: Final = "scvi.data._download"


class BatchAgnosticVAE(EncodingMixin, DecodingMixin, ClassesMixin, HeldOutGroupsMixin, SCVI):
    """Variational autoencoder of counts: one latent space across donors, and an encoder that does not see the donor.

    A :class:`scvi.model.SCVI` whose posterior depends on the raw counts of one spot only (with ``slide_key``, also on
    the counts of its slide: see :meth:`setup_anndata`). The batch enters the decoder only, and layer normalisation
    replaces batch normalisation. A spot of an unseen donor is therefore encoded like a training spot, without training
    and without a batch. The library size is the observed one.

    Parameters
    ----------
    adata
        Object set up with :meth:`setup_anndata`.
    registry
        Instead of ``adata``: the registry of :class:`~stcontrast.models.SpotsOnDisk`, to train from disk, or of a saved
        model, as :meth:`load` uses it.
    n_latent
        Dimensions of the latent space.
    n_hidden
        Width of the hidden layers of encoder and decoder.
    n_layers
        Number of hidden layers of encoder and decoder.
    gene_likelihood
        Distribution of the counts: negative binomial (default), zero-inflated negative binomial or Poisson.
    class_weight
        Weight of the classes relative to the log-likelihood of a spot: the factor of the cross-entropy of a linear
        classifier on the latent. 0 by default: no guidance. Needs ``labels_key`` and ``unlabeled_category`` in
        :meth:`setup_anndata`. Spots without a class contribute to the likelihood only.
    adversarial_weight
        Weight of a small network that predicts the batch from the latent, with reversed gradient (Ganin et al. 2016).
        0 by default: none. Values from 1 to 5 remove what is left of the batch; with much more, training oscillates.
    seed
        Seed of the initial weights, and of :meth:`train` unless that is given another one. ``None`` (default):
        ``scvi.settings.seed``, or 0 if that is not set.
    **kwargs
        Further arguments of the module, such as ``dropout_rate`` (0.1) and ``dispersion`` (``"gene"``). Arguments that
        would let the encoder see the batch are refused.

    Raises
    ------
    TypeError
        If an argument would make the encoder depend on the batch, ``encode_covariates`` for one.
    ValueError
        If neither ``adata`` nor ``registry`` is given, ``adata`` has not been set up, or ``class_weight`` is given
        without classes.

    Notes
    -----
    The model is scVI [1]_ with its options fixed as described; TPIRBAE [2]_ is the source of its use as the gene
    side of a contrastive model.

    References
    ----------
    .. [1] Lopez, Regier, Cole, Jordan, Yosef. Deep generative modeling for single-cell transcriptomics.
       Nature Methods 15, 1053–1058 (2018).
    .. [2] Nishimura, Bise, Kojima. arXiv:2503.07173 (2025).

    Examples
    --------
    >>> import anndata, numpy as np
    >>> counts = np.random.default_rng(0).poisson(2.0, size=(60, 30)).astype("float32")
    >>> adata = anndata.AnnData(counts[:40])
    >>> adata.obs["donor"] = ["A"] * 20 + ["B"] * 20
    >>> BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
    >>> model = BatchAgnosticVAE(adata, n_latent=5)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> unseen_donor = anndata.AnnData(counts[40:])
    >>> model.get_latent_representation(unseen_donor).shape
    (20, 5)
    """

    _module_cls = BatchAgnosticVAEModule
    _data_loader_cls = SpotLoader

    def __init__(  # noqa: PLR0913
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 1,
        gene_likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        class_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "n_latent": n_latent, "n_hidden": n_hidden, "n_layers": n_layers, "class_weight": class_weight,
            "adversarial_weight": adversarial_weight, "gene_likelihood": gene_likelihood,
            "dropout_rate": kwargs.get("dropout_rate", 0.1), **({} if seed is None else {"seed": seed}),
        }  # fmt: skip
        check_arguments(given, gene_likelihood=one_of("nb", "zinb", "poisson"))
        if seed is None:
            seed = scvi.settings.seed or 0
        with seeded(seed):
            super().__init__(
                adata,
                registry,
                n_hidden=n_hidden,
                n_latent=n_latent,
                n_layers=n_layers,
                gene_likelihood=gene_likelihood,
                class_weight=class_weight,
                adversarial_weight=adversarial_weight,
                **kwargs,
            )
        if class_weight > 0 and self.registry_["setup_args"].get("unlabeled_category") is None:
            msg = "class_weight needs classes: give labels_key and unlabeled_category to setup_anndata."
            raise ValueError(msg)
        if class_weight > 0 and self.module.classifier is None:
            msg = "class_weight needs classes, but every spot is unlabelled."
            raise ValueError(msg)
        self._model_summary_string = (
            f"BatchAgnosticVAE of {self.summary_stats.n_vars} genes: n_latent: {n_latent}, n_hidden: {n_hidden}, "
            f"n_layers: {n_layers}, gene_likelihood: {gene_likelihood}, encoder without the batch."
        )
        self.seed_ = seed
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str | None = None,
        slide_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the data to train a model on.

        As with every scvi-tools model, ``obs["_scvi_batch"]``, ``obs["_scvi_labels"]``, ``uns["_scvi_uuid"]`` and
        ``uns["_scvi_manager_uuid"]`` are written into ``adata``; nothing else is changed. Data to encode need no
        setup: see :meth:`get_latent_representation`.

        Parameters
        ----------
        adata
            Object with raw counts, spots × genes. If it is backed, the counts stay on disk and are checked, and later
            used for training, in parts.
        layer
            Layer that holds the raw counts; ``None`` (default) for ``X``.
        batch_key
            Column of ``obs`` whose effect the latent space must not contain, usually the donor. ``None`` (default) for
            no batches.
        labels_key
            Column of ``obs`` with classes, for a model with ``class_weight``. ``None`` (default) for none.
        unlabeled_category
            Value of that column in spots without a class. ``None`` (default): every spot has a class, and the classes
            are registered but do not guide the latent.
        slide_key
            Column of ``obs`` that names the slide (section) of a spot. With it the encoder sees the expression of a
            spot, ``log1p`` of counts per 10 000, in standard deviations from the mean of its own slide. This removes
            what shifts all spots of a slide alike (donor, day of staining, depth) before the encoder. Spots that are
            encoded later need this column too, and their slides must be complete. ``None`` (default): the encoder sees
            the counts of one spot only.
        **kwargs
            Arguments of :meth:`scvi.data.AnnDataManager.register_fields`; :meth:`load` needs them.

        Raises
        ------
        KeyError
            If the layer or a column is missing.
        ValueError
            If the values are not raw counts, gene names are not unique, there is no spot or no gene, or a column has
            missing values.

        Examples
        --------
        >>> import anndata, numpy as np
        >>> adata = anndata.AnnData(np.ones((4, 3), dtype="float32"))
        >>> adata.obs["donor"] = ["A", "A", "A", "A"]
        >>> BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
        """
        # SCVI reads this setting from the registry. Here it is always unset.
        kwargs.pop("size_factor_key", None)
        setup_method_args = cls._get_setup_method_args(**locals())
        setup_method_args["setup_args"]["size_factor_key"] = None
        layer = None if layer == "X" else layer
        check_layer(adata, layer)
        check_genes(adata)
        if unlabeled_category is not None and labels_key is None:
            msg = "unlabeled_category needs labels_key, the column in which it is a value."
            raise ValueError(msg)
        # the data of a query may have no labels: scvi-tools fills them in
        fills_labels = bool(kwargs.get("allow_missing_labels")) and unlabeled_category is not None
        without_labels = fills_labels and labels_key not in adata.obs
        check_categories(
            adata, batch_key=batch_key, labels_key=None if without_labels else labels_key, slide_key=slide_key
        )
        source_registry = kwargs.get("source_registry")
        if labels_key is not None and unlabeled_category is not None and source_registry is not None:
            if not without_labels:
                check_classes(adata, labels_key, source_registry)
        elif labels_key is not None and unlabeled_category is not None:
            found = sorted(map(str, adata.obs[labels_key].unique()))
            if unlabeled_category not in found:
                logger.warning(
                    "unlabeled_category %r is not in adata.obs[%r]: every spot counts as labelled. Its values are %s.",
                    unlabeled_category, labels_key, found,
                )  # fmt: skip
        fields = [
            CountsField(REGISTRY_KEYS.X_KEY, layer),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key)
            if unlabeled_category is None
            else LabelsWithUnlabeledObsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, None, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, None),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, None),
        ]
        if slide_key is not None:
            fields.append(SlideField(SLIDE_KEY, slide_key))
        if (minified := _get_adata_minify_type(adata)) is not None:
            fields += cls._get_fields_for_adata_minification(minified)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def load(
        cls,
        dir_path: str | PathLike[str],
        adata: AnnData | None = None,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> BatchAgnosticVAE:
        """Load a model saved with :meth:`save`.

        The training data are not needed: without them the model can encode new data only. The file is read only if it
        holds nothing that could run code.

        Parameters
        ----------
        dir_path
            Folder that it was saved to.
        adata
            The training data, or other data with the same columns. ``None`` (default) for the data that were saved with
            the model, if any.
        accelerator
            Kind of device, such as ``"cpu"`` or ``"gpu"``; by default the best that is available.
        device
            Device of that kind, by number or name.
        prefix
            Prefix of the files.

        Returns
        -------
        BatchAgnosticVAE
            The model, ready to encode.

        Raises
        ------
        ValueError
            If there is no model in the folder, it is a model of another class, or the file holds anything else.

        Examples
        --------
        >>> model = BatchAgnosticVAE.load("model_dir")  # doctest: +SKIP
        """
        _check_saved(Path(dir_path) / f"{prefix or ''}{SAVED_MODEL}")
        saved_adata = Path(dir_path) / f"{prefix or ''}{SAVED_ADATA}"
        data: AnnData | bool | None = adata
        if adata is None and not saved_adata.exists():
            data = False
        with quiet_loggers(DOWNLOAD_LOGGER), _genes_are_checked():
            return super().load(str(dir_path), data, accelerator=accelerator, device=device, prefix=prefix)

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: str | os.PathLike[str] | Self, **kwargs: Any) -> Self:
        """Make a model from a trained one, with the batches of other data added.

        Only needed to decode into the new batches. :meth:`get_latent_representation` of the reference already encodes
        their spots, to the same latent, because the encoder is frozen.

        Parameters
        ----------
        adata
            Spots of other donors, with the batch column of the reference. It is set up here, as by
            :meth:`setup_anndata`. If the column of classes is missing, all spots get the category of spots without a
            class.
        reference_model
            Trained model, or the folder that it was saved to.
        **kwargs
            Arguments of :meth:`scvi.model.base.ArchesMixin.load_query_data`, which say what is frozen.

        Returns
        -------
        BatchAgnosticVAE
            The model, ready to train on ``adata``.

        Raises
        ------
        KeyError
            If the batch column or the layer is missing.
        ValueError
            If the values are not raw counts, the genes are not those of the reference in its order, or the reference
            does not know a class.

        Examples
        --------
        >>> BatchAgnosticVAE.prepare_query_anndata(new, model)  # doctest: +SKIP
        >>> mapped = BatchAgnosticVAE.load_query_data(new, model)  # doctest: +SKIP
        >>> mapped.train(max_epochs=20)  # doctest: +SKIP
        """
        with quiet_loggers(DOWNLOAD_LOGGER), _genes_are_checked():
            model: Self = super().load_query_data(adata, _as_path(reference_model), **kwargs)
        return model

    @classmethod
    def prepare_query_anndata(
        cls,
        adata: AnnData,
        reference_model: str | os.PathLike[str] | Self,
        return_reference_var_names: bool = False,  # noqa: FBT001, FBT002
        inplace: bool = True,  # noqa: FBT001, FBT002
    ) -> Any:
        """Bring the genes of an object into the order of the reference; missing genes become zero counts.

        Parameters
        ----------
        adata
            Object for :meth:`load_query_data`.
        reference_model
            Trained model, or the folder that it was saved to.
        return_reference_var_names
            Whether to only return the genes of the reference.
        inplace
            Whether to change ``adata`` (default) or return a new object.

        Returns
        -------
        None, anndata.AnnData or pandas.Index
            ``None``; the new object unless ``inplace``; the genes if requested.

        Raises
        ------
        ValueError
            If ``adata`` has no gene of the reference.

        Examples
        --------
        >>> BatchAgnosticVAE.prepare_query_anndata(new, "model_dir")  # doctest: +SKIP
        """
        with quiet_loggers(DOWNLOAD_LOGGER):
            return super().prepare_query_anndata(adata, _as_path(reference_model), return_reference_var_names, inplace)


@contextmanager
def _genes_are_checked() -> Iterator[None]:
    """Without the warning of scvi-tools that genes differ: :class:`CountsField` raises where they do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`?var_names", category=UserWarning)
        yield


def _as_path(reference: Any) -> Any:
    """A trained model as it is; of the folder of one the path, after its checkpoint was found to run no code."""
    if not isinstance(reference, str | os.PathLike):
        return reference
    _check_saved(Path(reference) / SAVED_MODEL)
    return os.fspath(reference)


def _check_saved(checkpoint: Path) -> None:
    # of a checkpoint that is absent, scvi-tools says how to convert what is older
    if checkpoint.exists():
        check_checkpoint(checkpoint)
