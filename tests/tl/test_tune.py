"""Fine-tuning behind `fit` and `cross_validate`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import stcontrast as stc
from stcontrast._data import gather
from stcontrast._reading import Keys, resolve_all
from stcontrast.fitted._fit import FitSpec
from stcontrast.tl._tune import Tuning
from tests.tl.conftest import copied
from tests.tl.toy import LABELS, bare, parts_of, snapshot

TUNE: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "batch_norm": "adapted", "n_components": 4, "n_embedding": 8}
KEYS = Keys(batch_key="donor", donor_key="donor", label_key=LABELS)


def encoder(**kwargs: Any) -> stc.pp.TimmEncoder:
    return stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=16, device="cpu", **kwargs)


def tuned(sdata, **kwargs):
    options = {"method": "ridge", "encoder": encoder(), "image_tower": "finetune", "tower_options": TUNE}
    return stc.tl.fit(sdata, batch_key="donor", label_key=LABELS, **(options | kwargs))


@pytest.fixture(scope="module")
def model_and_data(toy):
    train = parts_of(copied(toy), "donor1", "donor2")
    return tuned(train), train


def test_the_model_keeps_the_losses_of_the_tuning(model_and_data):
    model, _ = model_and_data
    assert list(model.history) == ["fine-tuned encoder"]
    assert model.history["fine-tuned encoder"]["loss"].notna().all()


def test_tuned_features_leave_the_user_s_own_in_place(toy, model_and_data):
    model, train = model_and_data
    table = train["table"]
    assert table.obsm["X_image_tuned"].shape == (80, 96)
    np.testing.assert_array_equal(table.obsm["X_image"], parts_of(toy, "donor1", "donor2")["table"].obsm["X_image"])
    record = table.uns["stcontrast"]["image_features_X_image_tuned"]
    assert record["encoder"] == model.spec["image_features"][0]["encoder"] == model.tower.spec
    assert record["encoder"]["kind"] == "tuned"
    assert record["field_um"] == [200.0]
    assert table.uns["stcontrast"]["image_features"]["encoder"]["name"] == "texture"
    untuned = encoder()
    assert not np.allclose(untuned(np.zeros((1, 16, 16, 3), np.uint8)), model.tower(np.zeros((1, 16, 16, 3), np.uint8)))


def test_a_saved_model_makes_the_same_features_of_a_new_slide(model_and_data, unseen, tmp_path):
    model, train = model_and_data
    model.save(tmp_path / "model")
    read = stc.models.load(tmp_path / "model")
    assert read.tower.spec == model.tower.spec
    new = bare(unseen)
    stc.tl.predict_expression(new, read)
    stc.tl.classify(new, read)
    assert "X_image_tuned" in new["table"].obsm
    assert "X_image" not in new["table"].obsm
    stc.tl.predict_expression(unseen, model)
    np.testing.assert_array_equal(new["stc_pred"].X, unseen["stc_pred"].X)
    # a training slide is known again by features that are made anew
    again = bare(train)
    stc.tl.predict_expression(again, read)
    assert set(again["stc_pred"].uns["stcontrast"]["prediction"]["provenance"].values()) == {"in-sample"}
    np.testing.assert_allclose(again["stc_pred"].X, train["stc_pred"].X, atol=1e-5)


def test_the_method_s_own_loss_makes_another_tower_than_the_joint_one(raw, unseen, model_and_data):
    how = {"method": "bleep", "genes": list(raw["table"].var_names[:12]), "options": {"max_epochs": 1}}
    model = tuned(parts_of(raw, "donor1", "donor2"), tower_options={**TUNE, "loss": "method"}, **how)
    assert list(model.history["fine-tuned encoder"].columns) == ["epoch", "contrastive", "loss"]
    joint = model_and_data[0]
    assert model.tower.spec["sha256"] != joint.tower.spec["sha256"]
    stc.tl.predict_expression(unseen, model)
    assert np.isfinite(unseen["stc_pred"].X).all()


@pytest.mark.long
def test_in_a_cross_validation_every_method_has_towers_of_its_own_loss(toy, monkeypatch):
    made = []
    monkeypatch.setattr(Tuning, "run", _noted(Tuning.run, made))
    stc.tl.cross_validate(
        parts_of(copied(toy), "donor1", "donor2"), donor_key="donor", encoder=encoder(), image_tower="finetune",
        genes=list(toy["table"].var_names[:12]), tower_options={**TUNE, "loss": "method"},
        # (the first step of Adam knows the signs of the gradient alone: another loss may have the same ones)
        methods={"bleep": {"max_epochs": 1}, "narrow": {"method": "bleep", "n_embedding": 8, "max_epochs": 1}, "color": {}},
    )  # fmt: skip
    assert [name for name, _ in made] == ["without0-0", "without0-1", "without1-0", "without1-1"]
    assert len({sha for _, sha in made}) == 4


def _noted(run, made):
    def note(self, *args, name, **kwargs):
        found = run(self, *args, name=name, **kwargs)
        made.append((name, found[1].spec["sha256"]))
        return found

    return note


def test_features_of_another_tower_are_not_used(model_and_data, unseen):
    model, _ = model_and_data
    stc.tl.predict_expression(unseen, model)
    expected = unseen["stc_pred"].X
    table = unseen["table"]
    table.obsm["X_image_tuned"] = np.zeros_like(table.obsm["X_image_tuned"])
    table.uns["stcontrast"]["image_features_X_image_tuned"]["encoder"] = {**model.tower.spec, "sha256": "another"}
    stc.tl.predict_expression(unseen, model)
    np.testing.assert_array_equal(unseen["stc_pred"].X, expected)
    assert not table.obsm["X_image_tuned"].any()


def test_another_encoder_is_refused(model_and_data, unseen):
    for predict in (stc.tl.predict_expression, stc.tl.classify):
        with pytest.raises(ValueError, match="own fine-tuned encoder, and cannot use another one: leave out `encoder`"):
            predict(unseen, model_and_data[0], encoder=encoder())
    assert "X_image" not in unseen["table"].obsm


def test_weights_that_were_changed_on_disk_are_refused(model_and_data, tmp_path):
    model = model_and_data[0]
    changed = copy.copy(model)
    blocks = [{**block, "encoder": block["encoder"] | {"sha256": "0" * 64}} for block in model.spec["image_features"]]
    changed.spec = model.spec | {"image_features": blocks}
    changed.save(tmp_path / "model")
    with pytest.raises(ValueError, match="not the tuned weights of the model"):
        stc.models.load(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    weights = tmp_path / "model" / "tower.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"0000")
    with pytest.raises(ValueError, match=r"`tower\.safetensors` was changed after it was saved"):
        stc.models.load(tmp_path / "model")


def scrambled(sdata, donor: str):
    """The same slides, the donor's counts and labels replaced."""
    rng, table = np.random.default_rng(0), sdata["table"]
    rows = np.flatnonzero(table.obs["donor"] == donor)
    counts = table.X.toarray()
    counts[rows] = rng.poisson(5, size=(len(rows), counts.shape[1]))
    table.X = sparse.csr_matrix(counts)
    table.obs.iloc[rows, table.obs.columns.get_loc(LABELS)] = rng.permutation(table.obs[LABELS].to_numpy()[rows])
    return rows


def test_the_tower_of_an_inner_fold_has_not_seen_the_held_out_donor(toy):
    found = []
    for change in (False, True):
        sdata = copied(toy)
        if change:
            scrambled(sdata, "donor2")
        sources = resolve_all(sdata, KEYS)
        inputs = gather(sources, KEYS)
        tuning = Tuning.of(encoder(), None, TUNE)
        with tuning.cut(sources) as store:
            genes = inputs.genes[:12]
            found.append(
                tuning.run(
                    store, inputs, np.arange(len(inputs.slide)), FitSpec(n_genes=0, genes=genes), method="ridge"
                )[0]
            )
    [before, after] = found
    same = [np.array_equal(one, other) for one, other in zip(before.of_fold, after.of_fold, strict=True)]
    assert sorted(same) == [False, False, True]
    assert not np.array_equal(before.features, after.features)


def test_calibration_rests_on_the_fold_s_own_towers(raw, monkeypatch):
    """Features that leak give another score on held-out donors."""
    fitted = tuned(parts_of(raw, "donor1", "donor2"))
    seen = []
    monkeypatch.setattr(Tuning, "run", _leaky(Tuning.run, seen))
    leaky = tuned(parts_of(raw, "donor1", "donor2"))
    assert seen
    assert not np.array_equal(leaky.calibration.half_width, fitted.calibration.half_width)


def _leaky(run, seen):
    def leak(self, *args, **kwargs):
        found, tower = run(self, *args, **kwargs)
        seen.append(found)
        return replace(found, of_fold=tuple(found.features for _ in found.of_fold)), tower

    return leak


@pytest.mark.slow
def test_cross_validation_tunes_without_the_held_out_donor(toy, tmp_path, caplog):
    def predictions(sdata, **kwargs):
        return stc.tl.cross_validate(
            sdata, donor_key="donor", label_key=LABELS, methods=["ridge", "color"], encoder=encoder(),
            genes=list(toy["table"].var_names[:12]), image_tower="finetune", tower_options=TUNE, **kwargs,
        ).predictions  # fmt: skip

    first = copied(toy)
    before = snapshot(first)
    one = predictions(first, directory=tmp_path / "cv")
    assert snapshot(first) == before
    changed = copied(toy)
    rows = scrambled(changed, "donor3")
    other = predictions(changed)
    here = (one.obs["donor"] == "donor3").to_numpy()
    assert here.sum() == len(rows)
    for method in ("ridge", "color"):
        # (not to the last bit: a convolution may sum in another order)
        np.testing.assert_allclose(one[here].layers[method], other[here].layers[method], rtol=1e-5)
    assert not np.array_equal(one[~here].layers["ridge"], other[~here].layers["ridge"])
    # the towers are there already
    caplog.clear()
    with caplog.at_level("INFO", logger="stcontrast"):
        again = predictions(copied(toy), directory=tmp_path / "cv")
    assert "Tuning test_resnet" not in caplog.text
    np.testing.assert_allclose(again.layers["ridge"], one.layers["ridge"], rtol=1e-5)


def test_what_cannot_be_tuned_is_refused_before_any_work(raw):
    before = snapshot(raw)
    for wrong, message in {
        None: "needs an `encoder` to start from",
        "texture": "'texture' has no weights that could be fine-tuned",
        (lambda crops: crops.mean((1, 2))): "has no weights that could be fine-tuned",
    }.items():
        with pytest.raises(ValueError, match=message):
            tuned(raw, encoder=wrong)
    with pytest.raises(ValueError, match=r"Unknown `tower_options` \['epoch'\]. Valid options are \[.*'epochs'"):
        tuned(raw, tower_options={"epoch": 3})
    with pytest.raises(ValueError, match="Unknown `image_tower` 'tuned'"):
        tuned(raw, image_tower="tuned")
    with pytest.raises(ValueError, match="a frozen encoder has none"):
        tuned(raw, image_tower="frozen")
    with pytest.raises(ValueError, match="'color' uses colour alone"):
        tuned(raw, method="color")
    with pytest.raises(
        ValueError, match="'ridge' has no loss of its own that trains an encoder; 'bleep', 'mclstexp', 't"
    ):
        tuned(raw, tower_options={**TUNE, "loss": "method"})
    assert snapshot(raw) == before


def test_a_slot_that_is_taken_and_a_table_without_images_are_refused(raw):
    raw["table"].obsm["X_image_tuned"] = np.ones((120, 2))
    with pytest.raises(ValueError, match="holds something that no fine-tuning of stcontrast made"):
        tuned(raw)
    adata = raw["table"].copy()
    del adata.uns["spatialdata_attrs"], adata.obsm["X_image_tuned"]
    adata.obs["library_id"] = adata.obs["region"]
    adata.obsm["X_image"] = np.ones((120, 2))
    with pytest.raises(ValueError, match="No image lies under the spots"):
        tuned(adata)


def test_a_checkpoint_of_something_else_is_refused(raw, tmp_path):
    train = parts_of(raw, "donor1", "donor2")
    kept = {**TUNE, "checkpoint_dir": tmp_path}
    model = tuned(train, tower_options=kept)
    assert tuned(train, tower_options=kept).tower.spec == model.tower.spec
    with pytest.raises(ValueError, match=r"`checkpoint_dir`: .* differs in \['options'\]"):
        tuned(train, tower_options={**kept, "learning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"differs in \['crops'"):
        tuned(train, tower_options=kept, field_um=150)
