from __future__ import annotations

import pytest

from stcontrast.methods._base import METHODS, get_method
from stcontrast.methods.stcontrast import Stcontrast


def test_methods_by_name():
    published = {"tpirbae", "mclstexp", "nh2st", "bleep", "triplex", "deepspot", "mvitgene", "magic"}
    assert published | {"stcontrast", "ridge", "color", "mean", "depth", "knn", "kernel", "mlp"} <= set(METHODS)
    assert get_method("ridge", seed=3).spec == {"penalty": 300.0, "recipe": "folds", "seed": 3}
    method = get_method("stcontrast", options={"max_epochs": 7, "loss": "similarity_target"})
    assert isinstance(method, Stcontrast)
    assert method.spec["max_epochs"] == 7


def test_the_spec_makes_the_same_method_again():
    for name, kind in METHODS.items():
        method = get_method(name, seed=4)
        assert kind(**method.spec).spec == method.spec
        assert method.reference


def test_an_unknown_method_is_refused_with_a_list_of_methods():
    with pytest.raises(ValueError, match=r"Unknown method 'lasso'. Valid options are \['bleep', 'color', 'deepspot'"):
        get_method("lasso")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, r"Unknown options \['epochs'\] of the method 'stcontrast'. Valid options are .*'max_epochs'"),
        ({"loss": "triplet"}, "`loss` must be one of .soft_target., .*found .triplet."),
        ({"max_epochs": -1}, "`max_epochs` must be a whole number of at least 0"),
        ({"temperature": 0.0}, "must be a finite number above 0"),
        ({"penalty": 0.0}, "must be a finite number above 0"),
        ({"contrastive_weight": -1.0}, "`contrastive_weight` must be a finite number of at least 0"),
        ({"n_coordinates": 0}, "must be a whole number of at least 1"),
        ({"vae_epochs": 0}, "must be a whole number of at least 1"),
        ({"gene_space": "umap"}, r"`gene_space` must be one of .axes., .vae., a trained .* found .umap."),
    ],
)
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        get_method("stcontrast", options=options)
