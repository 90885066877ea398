"""The torch module of the batch-agnostic variational autoencoder."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import Normal
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch.distributions import kl_divergence

from stcontrast._models.batch_vae.likelihood import CountNegativeBinomial, Entries
from stcontrast._models.batch_vae.minibatches import ENCODER_KEY, ENTRIES_KEY

if TYPE_CHECKING:
    from torch.distributions import Distribution

__all__ = ["BatchAgnosticVAEModule"]

FIXED = {
    "encode_covariates": (False, "the encoder must not see the batch, or an unseen donor could not be encoded"),
    "latent_distribution": (
        "normal",
        "the latent of a spot is the posterior mean, which has a closed form only for the normal distribution",
    ),
    "use_observed_lib_size": (True, "a learnt library size needs a prior for each batch, and an unseen donor has none"),
}


class BatchAgnosticVAEModule(VAE):
    """Variational autoencoder of counts whose encoder depends on the counts of one spot only.

    The decoder takes the batch and models its effect on the counts. The encoder does not get the batch and holds no
    batch statistics: layer normalisation replaces batch normalisation, so that the latent of a spot depends neither on
    the other spots of a minibatch nor on the composition of the training set.

    Parameters
    ----------
    n_input
        Number of genes.
    gene_likelihood
        Distribution of the counts: ``"nb"`` (default), ``"zinb"`` or ``"poisson"``.
    use_batch_norm
        Where batch normalisation is applied: ``"none"`` (default) or ``"decoder"``.
    use_layer_norm
        Where layer normalisation is applied: ``"both"`` (default), ``"encoder"``, ``"decoder"`` or ``"none"``.
    class_weight
        Weight of the classes in the loss. With 0 (default) the labels are ignored. Otherwise a linear classifier on the
        latent is trained on the spots with a label; the last label means none.
    adversarial_weight
        Weight of a network that predicts the batch from the latent; 0 (default) for none. Its gradient reaches the
        encoder reversed and times this weight (Ganin et al. 2016).
    **kwargs
        Further arguments of :class:`scvi.module.VAE`.

    Raises
    ------
    TypeError
        If an argument would let the encoder depend on the batch.

    References
    ----------
    Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 2018 (scVI).
    Nishimura et al., arXiv 2503.07173 (TPIRBAE), for the use as a batch-agnostic encoder.
    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016.

    Examples
    --------
    >>> import torch
    >>> module = BatchAgnosticVAEModule(20, n_batch=2, n_latent=5).eval()
    >>> mean, variance = module.encode(torch.ones(3, 20))
    >>> tuple(mean.shape)
    (3, 5)
    """

    def __init__(
        self,
        n_input: int,
        *,
        gene_likelihood: str = "nb",
        use_batch_norm: str = "none",
        use_layer_norm: str = "both",
        class_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, (value, reason) in FIXED.items():
            if kwargs.pop(name, value) != value:
                msg = f"{name} is fixed at {value!r} in BatchAgnosticVAE: {reason}."
                raise TypeError(msg)
        if use_batch_norm not in ("none", "decoder"):
            msg = (
                f"use_batch_norm is {use_batch_norm!r}; BatchAgnosticVAE takes 'none' or 'decoder': batch normalisation "
                "in the encoder would make the latent of a spot depend on the spots it was trained with."
            )
            raise TypeError(msg)
        norms = {"use_batch_norm": use_batch_norm, "use_layer_norm": use_layer_norm}
        super().__init__(n_input, gene_likelihood=gene_likelihood, **norms, **kwargs)
        self.class_weight = class_weight
        n_classes = self.n_labels - 1
        self.classifier = torch.nn.Linear(self.n_latent, n_classes) if class_weight > 0 and n_classes > 0 else None
        self.adversarial_weight = adversarial_weight
        self.adversary = (
            _adversary(self.n_latent, self.n_batch) if adversarial_weight > 0 and self.n_batch > 1 else None
        )
        # not used with an observed library size, and as large as the encoder
        self.l_encoder = None
        if gene_likelihood != "zinb":
            # scVI computes this layer over all genes for every likelihood, but only ZINB uses it
            self.decoder.px_dropout_decoder = torch.nn.Identity()

    def encode(
        self, counts: torch.Tensor, encoder_input: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the latent posterior of each spot.

        Parameters
        ----------
        counts
            Raw counts, shape ``(n_spots, n_genes)``, on the device of the module.
        encoder_input
            What the encoder sees, if not the logarithm of the counts; shape of ``counts``.

        Returns
        -------
        tuple of torch.Tensor
            Mean and variance, each of shape ``(n_spots, n_latent)``.
        """
        posterior, _ = self.z_encoder(self._encoder_input(counts) if encoder_input is None else encoder_input)
        return posterior.loc, posterior.variance

    def classify(self, latent: torch.Tensor) -> torch.Tensor:
        """Logits of the classes at points of the latent space.

        Parameters
        ----------
        latent
            Points, shape ``(n_points, n_latent)``, on the device of the module.

        Returns
        -------
        torch.Tensor
            Logits, shape ``(n_points, n_classes)``.

        Raises
        ------
        RuntimeError
            If there is no classifier.
        """
        if self.classifier is None:
            msg = "there is no classifier: class_weight is 0, or there are no classes."
            raise RuntimeError(msg)
        logits: torch.Tensor = self.classifier(latent)
        return logits

    def loss(
        self,
        tensors: dict[str, Any],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: torch.Tensor | float = 1.0,
    ) -> LossOutput:
        """Negative ELBO of a minibatch, plus the cross-entropy of the classes of its spots that have one.

        Parameters
        ----------
        tensors, inference_outputs, generative_outputs, kl_weight
            As in :meth:`scvi.module.VAE.loss`.

        Returns
        -------
        LossOutput
            ``loss`` contains both, and the cross-entropy of the batches of the adversary; the other parts are those of
            the ELBO.
        """
        px = generative_outputs[MODULE_KEYS.PX_KEY]
        if not isinstance(px, CountNegativeBinomial):
            losses = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        else:
            stored = tensors.get(ENTRIES_KEY)
            entries = Entries.of(tensors[REGISTRY_KEYS.X_KEY]) if stored is None else Entries(*stored)
            reconstruction = -px.log_prob_of_spots(entries)
            posterior, prior = inference_outputs[MODULE_KEYS.QZ_KEY], generative_outputs[MODULE_KEYS.PZ_KEY]
            divergence = kl_divergence(posterior, prior).sum(dim=-1)
            losses = LossOutput(
                loss=(reconstruction + kl_weight * divergence).mean(),
                reconstruction_loss=reconstruction,
                kl_local={MODULE_KEYS.KL_Z_KEY: divergence},
            )
        if self.adversary is not None:
            z = inference_outputs[MODULE_KEYS.Z_KEY]
            told = self.adversary(_reversed_gradient(z, self.adversarial_weight))
            batch = tensors[REGISTRY_KEYS.BATCH_KEY].flatten().long()
            losses = replace(losses, loss=losses.loss + torch.nn.functional.cross_entropy(told, batch))
        if self.classifier is None:
            return losses
        label = tensors[REGISTRY_KEYS.LABELS_KEY].flatten().long()
        known = label < self.classifier.out_features
        logits = self.classify(inference_outputs[MODULE_KEYS.Z_KEY])
        entropy = torch.nn.functional.cross_entropy(logits[known], label[known], reduction="sum") / len(label)
        return replace(losses, loss=losses.loss + self.class_weight * entropy)

    def _get_inference_input(
        self,
        tensors: dict[str, Any],
        full_forward_pass: bool = False,  # noqa: FBT001, FBT002 (scvi-tools' signature)
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._get_inference_input(tensors, full_forward_pass)
        if MODULE_KEYS.X_KEY in inputs:
            inputs["encoder_input"] = tensors.get(ENCODER_KEY)
            if inputs["encoder_input"] is None and self.log_variational and ENTRIES_KEY in tensors:
                # the logarithm of the entries that are not zero takes a fifth of the time
                counts, entries = inputs[MODULE_KEYS.X_KEY], Entries(*tensors[ENTRIES_KEY])
                logs = torch.zeros_like(counts).view(-1).scatter_(0, entries.position, entries.value.log1p())
                inputs["encoder_input"] = logs.view(counts.shape)
        return inputs

    def _encoder_input(self, counts: torch.Tensor) -> torch.Tensor:
        return torch.log1p(counts) if self.log_variational else counts

    @auto_move_data
    def _regular_inference(
        self,
        x: torch.Tensor,
        batch_index: torch.Tensor | None = None,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        n_samples: int = 1,
        *,
        encoder_input: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | Distribution | None]:
        posterior, z = self.z_encoder(self._encoder_input(x) if encoder_input is None else encoder_input)
        # an empty spot counts as one of depth 1: the gradient of a Poisson rate of zero is not a number
        library = torch.log(x.sum(1, keepdim=True).clamp(min=1))
        if n_samples > 1:
            z = posterior.sample((n_samples,))
            library = library.expand(n_samples, *library.shape)
        return {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZ_KEY: posterior,
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    # scvi-tools reads the signature to see whether a model can decode into another batch
    @wraps(VAE.generative, assigned=())
    def generative(self, *args: Any, **kwargs: Any) -> dict[str, Distribution | None]:
        """Distribution of the counts given latent, library size and batch, as in :meth:`scvi.module.VAE.generative`.

        Parameters
        ----------
        *args, **kwargs
            Arguments of :meth:`scvi.module.VAE.generative`.

        Returns
        -------
        dict
            ``"px"``, the distribution of the counts, ``"pl"`` (``None``) and ``"pz"``, the prior.
        """
        one_hot = self.batch_representation == "one-hot" and not self.use_size_factor_key
        if self.gene_likelihood != "nb" or self.dispersion != "gene" or not one_hot:
            return super().generative(*args, **kwargs)
        return self._generative_of_counts(*args, **kwargs)

    def _generative_of_counts(
        self,
        z: torch.Tensor,
        library: torch.Tensor,
        batch_index: torch.Tensor,
        transform_batch: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, Distribution | None]:
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        # the linear layer before the softmax: with its logits the likelihood needs no mean
        logits = self.decoder.px_scale_decoder[0](self.decoder.px_decoder(z, batch_index))
        return {
            MODULE_KEYS.PX_KEY: CountNegativeBinomial(
                logits=logits.float(), log_library=library.float(), theta=torch.exp(self.px_r.float())
            ),
            MODULE_KEYS.PL_KEY: None,
            MODULE_KEYS.PZ_KEY: Normal(torch.zeros_like(z), torch.ones_like(z)),
        }


def _adversary(n_latent: int, n_batch: int, n_hidden: int = 64) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(n_latent, n_hidden), torch.nn.ReLU(), torch.nn.Linear(n_hidden, n_batch))


def _reversed_gradient(values: torch.Tensor, weight: float) -> torch.Tensor:
    """The values, with minus `weight` as derivative."""
    return (1 + weight) * values.detach() - weight * values
