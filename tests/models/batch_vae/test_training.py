from __future__ import annotations

import logging
import random
import signal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi import REGISTRY_KEYS

from stcontrast._models.batch_vae import BatchAgnosticVAEModule
from stcontrast._models.batch_vae.training import HeldOutBatchPlan, default_max_epochs, hold_out_groups
from stcontrast.models import BatchAgnosticVAE
from tests.models.batch_vae.synthetic import make_adata


def make_model(donors: str = "ABCD", *, batch_key: str | None = "donor", **kwargs: Any) -> BatchAgnosticVAE:
    adata = make_adata(donors, n_spots=40)
    BatchAgnosticVAE.setup_anndata(adata, batch_key=batch_key)
    return BatchAgnosticVAE(adata, n_latent=4, n_hidden=16, **kwargs)


def weights(model: BatchAgnosticVAE) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.module.parameters()])


def held_out(model: BatchAgnosticVAE, key: str) -> set[str]:
    column = model.adata.obs[key]
    inside, outside = set(column.iloc[model.validation_indices]), set(column.iloc[model.train_indices])
    assert not inside & outside
    assert len(model.validation_indices) + len(model.train_indices) == len(column)
    return inside


def test_one_of_four_batches_is_held_out_by_default():
    model = make_model("ABCD")
    model.train(max_epochs=1)
    assert len(held_out(model, "donor")) == 1
    assert len(model.history["elbo_validation"]) == 1


def test_few_batches_are_all_trained_on_and_a_message_says_so(caplog: pytest.LogCaptureFixture):
    model = make_model("ABC")
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        model.train(max_epochs=1)
    assert len(model.validation_indices) == 0
    assert "Training on all 120 spots, without a validation set" in caplog.text
    assert "elbo_validation" not in model.history


def test_slides_can_be_held_out_by_name_or_number():
    model = make_model("AB")
    model.train(max_epochs=1, validation_key="slide", validation_groups=["A2", "B1"])
    assert held_out(model, "slide") == {"A2", "B1"}
    model.train(max_epochs=1, validation_key="slide", validation_groups=3)
    assert len(held_out(model, "slide")) == 3


def test_the_weight_of_the_divergence_rises_to_one_half():
    model = make_model("AB")
    model.train(max_epochs=4)
    np.testing.assert_allclose(model.history["kl_weight"].to_numpy(dtype=float).ravel(), [0, 1 / 8, 2 / 8, 3 / 8])


def test_no_batch_key_at_all():
    model = make_model("AB", batch_key=None)
    model.train(max_epochs=1)
    assert len(model.validation_indices) == 0
    assert np.isfinite(model.get_latent_representation()).all()


def test_missing_validation_key():
    with pytest.raises(KeyError, match=r"validation_key 'patient' is not in adata.obs, which has \['donor', 'slide'"):
        make_model().train(max_epochs=1, validation_key="patient")


def test_early_stopping_stops_and_can_be_switched_off(caplog: pytest.LogCaptureFixture):
    model = make_model()
    settings: dict[str, Any] = {"max_epochs": 6, "validation_groups": ["B"], "learning_rate": 0.0}
    with caplog.at_level(logging.INFO, logger="stcontrast"):
        model.train(**settings, early_stopping_patience=1, callbacks=[])
    n_epochs = len(model.history["elbo_train"])
    assert n_epochs < 6
    assert f"Stopped after {n_epochs} epochs" in caplog.text
    other = make_model()
    other.train(**settings, early_stopping=False)
    assert len(other.history["elbo_train"]) == 6


def test_losses_go_down_and_are_recorded_under_the_names_of_scvi():
    model = make_model()
    model.train(max_epochs=15, validation_groups=["A"], early_stopping=False, batch_size=32)
    for mode in ("train", "validation"):
        for name in ("elbo", "reconstruction_loss", "kl_local"):
            values = model.history[f"{name}_{mode}"][f"{name}_{mode}"].astype(float)
            assert len(values) == 15
            assert np.isfinite(values).all()
        elbo = model.history[f"elbo_{mode}"].astype(float).iloc[:, 0]
        assert elbo.iloc[-1] < 0.95 * elbo.iloc[0]


def test_recorded_loss_is_the_loss_of_the_spots():
    model = make_model("AB")
    model.train(max_epochs=1, learning_rate=0.0, batch_size=32)
    recorded = float(model.history["reconstruction_loss_train"].iloc[0, 0])
    model.module.eval()
    with torch.random.fork_rng():
        computed = model.get_reconstruction_error()["reconstruction_loss"]
    # Dropout and the noise of the latent differ between the two.
    assert recorded == pytest.approx(abs(float(computed)), rel=0.05)


def test_validation_loss_of_an_unseen_donor_ignores_its_untrained_decoder_weights():
    losses = []
    for scale in (1.0, 50.0):
        model = make_model()
        code = list(model.adata.obs["donor"].cat.categories).index("C")
        first_layer = model.module.decoder.px_decoder.fc_layers[0][0]
        with torch.no_grad():
            first_layer.weight[:, 4 + code] *= scale
        model.train(max_epochs=1, validation_groups=["C"])
        losses.append(float(model.history["elbo_validation"].iloc[0, 0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_same_seed_same_weights_whatever_the_session_drew():
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        model = make_model(seed=3)
        model.train(max_epochs=2)
        results.append(weights(model))
    assert torch.equal(*results)
    other = make_model(seed=3)
    other.train(max_epochs=2, seed=4)
    assert not torch.equal(results[0], weights(other))


def test_the_session_does_not_change():
    lightning, n_threads = logging.getLogger("lightning.pytorch"), torch.get_num_threads()
    level = lightning.level
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    make_model().train(max_epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert lightning.level == level
    assert torch.get_num_threads() == n_threads


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    model = make_model()
    model.train(max_epochs=3, early_stopping_patience=1, learning_rate=0.0)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_small_networks_are_trained_on_one_thread():
    model = make_model("AB")
    n_threads: list[int] = []
    model.module.z_encoder.register_forward_hook(lambda *_: n_threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model.train(max_epochs=1)
    torch.set_num_threads(before)
    assert set(n_threads) == {1}


def test_training_goes_on_in_training_mode():
    model = make_model("AB")
    model.train(max_epochs=1)
    modes: list[bool] = []
    model.module.z_encoder.register_forward_hook(lambda layer, *_: modes.append(layer.training))
    model.train(max_epochs=1)
    assert modes
    assert all(modes)
    assert not model.module.training
    assert len(model.history["elbo_train"]) == 2


@pytest.mark.parametrize(("n_spots", "n_epochs"), [(1, 100), (500, 100), (1000, 79), (2500, 50), (10**6, 20)])
def test_fewer_epochs_for_more_spots(n_spots: int, n_epochs: int):
    assert default_max_epochs(n_spots) == n_epochs


SLIDES = pd.Series(["A1", "B1", "A2", "A1", "B1", "C1", "A2"], name="slide")


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=40).filter(lambda g: len(set(g)) > 1),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_whole_groups_and_every_row_once(groups: list[str], data: st.DataObject, seed: int):
    n_held_out = data.draw(st.integers(0, len(set(groups)) - 1))
    train, validation = hold_out_groups(pd.Series(groups, name="donor"), n_held_out, seed=seed)
    names = np.array(groups)
    assert sorted([*train, *validation]) == list(range(len(groups)))
    assert not set(names[train]) & set(names[validation])
    assert len(set(names[validation])) == n_held_out


def test_named_groups():
    np.testing.assert_array_equal(hold_out_groups(SLIDES, ["C1", "A1"], seed=0)[1], [0, 3, 5])
    np.testing.assert_array_equal(hold_out_groups(SLIDES, "B1", seed=0)[1], [1, 4])


def test_the_draw_depends_on_the_seed_alone():
    first, second = ([hold_out_groups(SLIDES, 1, seed=seed)[1].tolist() for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(map(tuple, first))) > 1


def test_a_missing_group_is_an_error():
    with pytest.raises(ValueError, match=r"groups \['Z9'\] are not in 'slide', which has \['A1', 'A2', 'B1', 'C1'\]"):
        hold_out_groups(SLIDES, ["A1", "Z9"], seed=0)


@pytest.mark.parametrize("held_out", [4, -1, ["A1", "A2", "B1", "C1"]])
def test_one_group_must_be_left_to_train_on(held_out: int | list[str]):
    with pytest.raises(ValueError, match="at least one must be left"):
        hold_out_groups(SLIDES, held_out, seed=0)


def test_a_single_group_is_trained_on_and_a_message_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        train, validation = hold_out_groups(pd.Series(["A"] * 5, name="donor"), 1, seed=0)
    assert len(train) == 5
    assert len(validation) == 0
    assert "All 5 spots belong to one group (A)" in caplog.text


def make_batch(codes: list[int]) -> dict[str, torch.Tensor]:
    return {REGISTRY_KEYS.BATCH_KEY: torch.tensor(codes).unsqueeze(1), "other": torch.ones(len(codes), 1)}


def make_plan(trained: list[int] | None) -> HeldOutBatchPlan:
    return HeldOutBatchPlan(BatchAgnosticVAEModule(5, n_batch=4), trained_batches=trained)


def test_spots_of_an_untrained_batch_are_decoded_as_the_trained_ones_in_turn():
    batch = make_batch([2, 2, 2, 2, 2])
    moved = make_plan([0, 1, 3])._in_trained_batches(batch)
    assert moved[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [0, 1, 3, 0, 1]
    assert batch[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [2] * 5
    assert torch.equal(moved["other"], batch["other"])


def test_spots_of_a_trained_batch_stay_in_it():
    moved = make_plan([0, 3])._in_trained_batches(make_batch([3, 1, 0, 1, 3]))
    assert moved[REGISTRY_KEYS.BATCH_KEY].squeeze(1).tolist() == [3, 3, 0, 3, 3]


def test_without_a_list_of_batches_nothing_moves():
    batch = make_batch([3, 1])
    assert make_plan(None)._in_trained_batches(batch) is batch


@pytest.mark.parametrize("learning_rate", [1e6, 1e30], ids=["loss", "parameters"])
def test_a_loss_that_is_no_number_stops_the_training_and_leaves_no_model(learning_rate: float):
    model = make_model("AB")
    with pytest.raises(FloatingPointError, match=r"loss of the gene VAE is (nan|inf) in epoch \d+: "):
        model.train(max_epochs=5, learning_rate=learning_rate)
    assert not model.is_trained_


def test_ctrl_c_leaves_no_model(monkeypatch: pytest.MonkeyPatch):
    model = make_model("AB")
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(HeldOutBatchPlan, "on_train_epoch_end", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=5)
    assert not model.is_trained_
    assert signal.getsignal(signal.SIGINT) is before
