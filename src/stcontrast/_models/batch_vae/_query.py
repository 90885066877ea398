"""Further training on the spots of another donor, by the surgery on the decoder that scvi-tools has for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stcontrast._models.batch_vae._session import quiet_loggers

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

__all__ = ["QueryMixin"]

# scvi-tools says of a folder on disk that it has been downloaded
_LOGGER = "scvi.data._download"


class QueryMixin:
    """A reference model, or the folder it was saved to, and the data of donors that it has not seen."""

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: str | os.PathLike[str] | Self, **kwargs: Any) -> Self:
        """A model that goes on from a trained one, with the batches of other data added.

        Only needed to decode into the new batches: :meth:`get_latent_representation` of the reference encodes them
        already, and to the same latent, because the encoder is frozen.

        Parameters
        ----------
        adata
            Spots of other donors, with the reference's batch column. Set up here, as :meth:`setup_anndata` would; a
            column of classes that is absent is filled with the category of spots without a class.
        reference_model
            A trained model, or the folder that it was saved to.
        **kwargs
            Arguments of :meth:`scvi.model.base.ArchesMixin.load_query_data`, which say what is frozen.

        Returns
        -------
        BatchAgnosticVAE
            The model, to be trained on ``adata``.

        Raises
        ------
        KeyError
            If the batch column or the layer is not there.
        ValueError
            If the values are not raw counts, genes of the reference are missing, or a class is new to it.

        Examples
        --------
        >>> BatchAgnosticVAE.prepare_query_anndata(new, model)  # doctest: +SKIP
        >>> mapped = BatchAgnosticVAE.load_query_data(new, model)  # doctest: +SKIP
        >>> mapped.train(max_epochs=20)  # doctest: +SKIP
        """
        with quiet_loggers(_LOGGER):
            model: Self = super().load_query_data(adata, _as_text(reference_model), **kwargs)  # type: ignore[misc]
        return model

    @classmethod
    def prepare_query_anndata(
        cls,
        adata: AnnData,
        reference_model: str | os.PathLike[str] | Self,
        return_reference_var_names: bool = False,  # noqa: FBT001, FBT002
        inplace: bool = True,  # noqa: FBT001, FBT002
    ) -> Any:
        """Put the genes of an object into the order of the reference; genes that it lacks become zero counts.

        Parameters
        ----------
        adata
            Object to be given to :meth:`load_query_data`.
        reference_model
            A trained model, or the folder that it was saved to.
        return_reference_var_names
            Whether to do nothing but return the reference's genes.
        inplace
            Whether to change ``adata`` (default) or return another object.

        Returns
        -------
        None, anndata.AnnData or pandas.Index
            ``None``; the changed object unless ``inplace``; the genes if they were asked for.

        Raises
        ------
        ValueError
            If no gene of the reference is there.

        Examples
        --------
        >>> BatchAgnosticVAE.prepare_query_anndata(new, "model_dir")  # doctest: +SKIP
        """
        with quiet_loggers(_LOGGER):
            return super().prepare_query_anndata(  # type: ignore[misc]
                adata, _as_text(reference_model), return_reference_var_names, inplace
            )


def _as_text(reference: Any) -> Any:
    return os.fspath(reference) if isinstance(reference, str | os.PathLike) else reference
