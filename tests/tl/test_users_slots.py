"""Nothing of the user's is replaced: a slot that the package has not written is refused before any work."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

QUICK = {"max_epochs": 1}
VAE = {"gene_space": "vae", "vae_epochs": 1} | QUICK


def toy() -> SpatialData:
    return stc.datasets.toy(n_donors=2, n_spots=24, n_genes=24)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Slides whose slots we have written, and the model that wrote them."""
    sdata = toy()
    model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", options=VAE)
    stc.tl.classify(sdata, model)
    return {"model": model, "sdata": sdata}


WRITES: dict[str, tuple[str, str, Callable[[SpatialData, Any], Any]]] = {
    "fit, image side": ("obsm", "X_stc_image", lambda s, _: stc.tl.fit(s, batch_key="donor", options=QUICK)),
    "fit, gene side": ("obsm", "X_stc_gene", lambda s, _: stc.tl.fit(s, batch_key="donor", options=QUICK)),
    "fit, latent": ("obsm", "X_stc_vae", lambda s, _: stc.tl.fit(s, batch_key="donor", options=VAE)),
    "fit, tuned": (
        "obsm",
        "X_image_tuned",
        lambda s, _: stc.tl.fit(
            s,
            batch_key="donor",
            method="ridge",
            image_tower="finetune",
            field_um=100,
            encoder=stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=32),
        ),
    ),
    "embed": ("obsm", "X_stc_image", lambda s, model: stc.tl.embed(s, model)),
    "embed, genes": ("obsm", "X_stc_gene", lambda s, model: stc.tl.embed(s, model)),
    "embed_genes": ("obsm", "X_stc_vae", lambda s, model: stc.tl.embed_genes(s, model=model)),
    "classify": ("obs", "stc_class", lambda s, model: stc.tl.classify(s, model)),
    "classify, confidence": ("obs", "stc_class_confidence", lambda s, model: stc.tl.classify(s, model)),
    "classify, probabilities": ("obsm", "stc_class_proba", lambda s, model: stc.tl.classify(s, model)),
    "complete": ("layers", "stc_completed", lambda s, _: stc.pp.complete(s)),
    "features": ("obsm", "X_image", lambda s, _: stc.pp.image_features(s, encoder="color")),
    "features, positions": (
        "obsm",
        "spatial",
        lambda s, _: stc.pp.image_features(s, encoder="color", key_added="spatial"),
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_slot_of_the_user_is_refused_and_stays(made: dict[str, Any], name: str) -> None:
    where, slot, write = WRITES[name]
    sdata = toy()
    table = sdata["table"]
    shape = table.shape if where == "layers" else (table.n_obs,) if where == "obs" else (table.n_obs, 3)
    mine = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    getattr(table, where)[slot] = mine
    slots = {part: set(getattr(table, part)) for part in ("obs", "obsm", "layers", "uns")}
    with pytest.raises(ValueError, match=rf"`{where}\['{slot}'\]` holds something"):
        write(sdata, made["model"])
    np.testing.assert_array_equal(np.asarray(getattr(sdata["table"], where)[slot]), mine)
    # nothing was written, as the error comes before any work
    assert {part: set(getattr(sdata["table"], part)) for part in slots} == slots
    assert "stc_pred" not in sdata


@pytest.mark.parametrize("name", ["fit, image side", "embed", "classify", "embed_genes"])
def test_what_we_wrote_is_replaced(made: dict[str, Any], name: str) -> None:
    sdata = copy.deepcopy(made["sdata"])
    WRITES[name][2](sdata, made["model"])
