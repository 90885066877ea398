"""The batch-agnostic variational autoencoder as a scvi-tools model."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

from stcontrast._models.batch_vae._classes import ClassesMixin, check_classes
from stcontrast._models.batch_vae._counts import CountsField, check_categories, check_genes, check_layer
from stcontrast._models.batch_vae._decoding import DecodingMixin
from stcontrast._models.batch_vae._encoding import EncodingMixin
from stcontrast._models.batch_vae._minibatches import SpotLoader
from stcontrast._models.batch_vae._module import BatchAgnosticVAEModule
from stcontrast._models.batch_vae._query import QueryMixin
from stcontrast._models.batch_vae._reference import SLIDE_KEY, SlideField
from stcontrast._models.batch_vae._session import quiet_loggers
from stcontrast._models.batch_vae._training import HeldOutGroupsMixin
from stcontrast._training import seeded

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData

__all__ = ["BatchAgnosticVAE"]

logger = logging.getLogger(__name__)

_SAVED_ADATA = "adata.h5ad"


class BatchAgnosticVAE(EncodingMixin, DecodingMixin, ClassesMixin, QueryMixin, HeldOutGroupsMixin, SCVI):
    """Variational autoencoder of counts, with one latent space across donors and an encoder that is blind to them.

    A :class:`scvi.model.SCVI` in which the posterior is a function of the raw counts of one spot and nothing else (with
    ``slide_key``, of the counts of its slide too: see :meth:`setup_anndata`). The batch enters the decoder only, and
    layer normalisation stands in for batch normalisation. A spot of a donor that the model never saw is therefore
    encoded as a training spot is, with no training and no batch. The library size is the observed one.

    Parameters
    ----------
    adata
        Object set up with :meth:`setup_anndata`.
    registry
        In place of ``adata``: that of :class:`~stcontrast.models.SpotsOnDisk`, to train from disk; or that of a saved
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
        How much the classes guide the latent, against the log-likelihood of a spot: the weight of the cross-entropy
        of a linear classifier on the latent. 0 by default: no guidance. Needs ``labels_key`` and
        ``unlabeled_category`` in :meth:`setup_anndata`; spots without a class take part in the likelihood alone.
    adversarial_weight
        How hard the encoder works against a small network that tells the batch from the latent, by a reversed gradient
        (Ganin et al. 2016). 0 by default: none. 1 to 5 mix what is left of the batch; much more, and the two only
        chase each other.
    seed
        Seed of the initial weights, and of :meth:`train` unless it is given another one.
    **kwargs
        Further arguments of the module, such as ``dropout_rate``
        (0.1) and ``dispersion`` (``"gene"``). What would let the encoder see the batch is refused.

    Raises
    ------
    TypeError
        If an argument would make the encoder depend on the batch, ``encode_covariates`` for one.
    ValueError
        If neither ``adata`` nor ``registry`` is given, or ``adata`` has not been set up, or there are no classes for
        ``class_weight`` to work with.

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
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, weight in (("class_weight", class_weight), ("adversarial_weight", adversarial_weight)):
            if not 0 <= weight < math.inf:
                msg = f"{name} is {weight}; it must be a number from 0 on."
                raise ValueError(msg)
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
            f"n_layers: {n_layers}, gene_likelihood: {gene_likelihood}, encoder blind to the batch."
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
        """Register the data that a model is to be trained on.

        As with every scvi-tools model, ``obs["_scvi_batch"]``, ``obs["_scvi_labels"]``, ``uns["_scvi_uuid"]`` and
        ``uns["_scvi_manager_uuid"]`` are written into ``adata``; nothing else is changed. Data that are only to be
        encoded need no set-up: see :meth:`get_latent_representation`.

        Parameters
        ----------
        adata
            Object with raw counts, spots × genes. Of a backed one the counts stay on disk; they are checked, and later
            trained on, in parts.
        layer
            Layer that holds the raw counts; ``None`` (default) for ``X``.
        batch_key
            Column of ``obs`` that the latent space is to be blind to: the donor, as a rule. ``None`` (default) for
            no batches.
        labels_key
            Column of ``obs`` with classes, for a model with ``class_weight``. ``None`` (default) for none.
        unlabeled_category
            Value of that column in spots without a class. ``None`` (default): every spot has one, and they are
            registered but guide nothing.
        slide_key
            Column of ``obs`` that names the slide (section) of a spot. With it the encoder sees the expression of a
            spot, ``log1p`` of counts per 10 000, in standard deviations from the mean of its own slide, and with it
            what donors, stainings of a day and depths do to all spots of a slide alike is gone before anything is
            encoded. Spots that are encoded later need that column too, and their slides whole. ``None`` (default): the
            encoder sees the counts, and of one spot only.
        **kwargs
            Arguments of :meth:`scvi.data.AnnDataManager.register_fields`; :meth:`load` needs them.

        Raises
        ------
        KeyError
            If the layer or a column is not there.
        ValueError
            If the values are not raw counts, a gene stands twice, there is no spot or no gene, or a column has
            missing values.

        Examples
        --------
        >>> import anndata, numpy as np
        >>> adata = anndata.AnnData(np.ones((4, 3), dtype="float32"))
        >>> adata.obs["donor"] = ["A", "A", "A", "A"]
        >>> BatchAgnosticVAE.setup_anndata(adata, batch_key="donor")
        """
        # SCVI reads this setting from the registry; here it is always unset.
        kwargs.pop("size_factor_key", None)
        setup_method_args = cls._get_setup_method_args(**locals())
        setup_method_args["setup_args"]["size_factor_key"] = None
        layer = None if layer == "X" else layer
        check_layer(adata, layer)
        check_genes(adata)
        if unlabeled_category is not None and labels_key is None:
            msg = "unlabeled_category needs labels_key, the column that it is a value of."
            raise ValueError(msg)
        # the data of a query may come without labels: scvi-tools fills them in
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

        The data that it was trained on are not needed: without them the model encodes new data and nothing else.
        Files are unpickled: load only what you trust.

        Parameters
        ----------
        dir_path
            Folder that it was saved to.
        adata
            Data that it was trained on, or others with the same columns. ``None`` (default) for those saved with it,
            if any.
        accelerator
            Kind of device, such as ``"cpu"`` or ``"gpu"``; the best that is there by default.
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
            If there is no model in the folder, or it is one of another class.

        Examples
        --------
        >>> model = BatchAgnosticVAE.load("model_dir")  # doctest: +SKIP
        """
        saved_adata = Path(dir_path) / f"{prefix or ''}{_SAVED_ADATA}"
        data: AnnData | bool | None = adata
        if adata is None and not saved_adata.exists():
            data = False
        with quiet_loggers("scvi.data._download"):
            return super().load(str(dir_path), data, accelerator=accelerator, device=device, prefix=prefix)
