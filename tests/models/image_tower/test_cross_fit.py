from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stcontrast._data import inner_folds
from stcontrast._models.image_tower import CropRows, TowerOptions
from stcontrast._models.image_tower.batches import TowerTargets
from stcontrast._models.image_tower.cross_fit import CrossFitted, cross_fit, encode
from stcontrast._models.image_tower.encoder import weights_sha256
from stcontrast._models.image_tower.training import Task, train_tower
from tests.models.image_tower.synthetic import QUICK, encoder, spots, store_of, tower

if TYPE_CHECKING:
    from pathlib import Path

    from stcontrast.methods import Spots

HOW: dict[str, Any] = {**QUICK, "epochs": 4, "learning_rate": 2e-3}


def fitted(*, told: bool = True, **options: Any) -> CrossFitted:
    """With crops that determine the targets, or with unrelated crops."""
    data = spots()
    with store_of(data if told else unrelated(data), n_fields=2) as store:
        crops = CropRows(store, np.arange(48))
        found = cross_fit(
            encoder(), crops, data, inner_folds(data), TowerOptions(**{**HOW, **options}), center=True, seed=0
        )
        assert encode(found.encoder, crops).shape == (48, 2 * 96)
    return found


def unrelated(data: Spots) -> Spots:
    return replace(data, design=np.random.default_rng(5).normal(size=data.design.shape).astype(np.float32))


def test_the_epoch_with_the_lowest_held_out_loss_is_used_for_all_towers() -> None:
    found = fitted(stop="held-out", learning_rate=2e-2, told=False)
    means = np.mean([[row["held_out_loss"] for row in found.losses[f"fold{i}"]] for i in range(3)], axis=0)
    best = int(means.argmin()) + 1
    assert best < 4, "overfitting to noise does not help on other donors"
    assert len(found.losses["final"]) == best
    data, options = spots(), TowerOptions(**{**HOW, "learning_rate": 2e-2})
    fold = inner_folds(data)[1]
    with store_of(unrelated(data), n_fields=2) as store:
        for rows, made in ((fold.train, found.of_fold[1]), (np.arange(48), found.encoder)):
            part = tower(options)
            targets = TowerTargets.of(data, rows, n_components=4)
            task = Task(CropRows(store, np.arange(48)), targets, rows, None, center=True, seed=0)
            train_tower(part, task, options, last_epoch=best)
            assert weights_sha256(part.backbone) == made.spec["sha256"]


def test_all_towers_differ_and_the_given_encoder_does_not_change() -> None:
    base = encoder()
    before = weights_sha256(base._model)
    data = spots()
    with store_of(data) as store:
        found = cross_fit(
            base, CropRows(store, np.arange(48)), data, inner_folds(data), TowerOptions(**{**HOW, "epochs": 1}),
            center=True, seed=0,
        )  # fmt: skip
    assert weights_sha256(base._model) == before
    assert not any(weight.requires_grad for weight in base._model.parameters())
    assert len({before, *(tuned.spec["sha256"] for tuned in (found.encoder, *found.of_fold))}) == 5


def test_a_broken_cross_fit_keeps_the_towers_that_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == 2:
            msg = "out of time"
            raise TimeoutError(msg)
        trained.append(1)
        return train_tower(*args, **kwargs)

    rest: list[int] = []
    monkeypatch.setattr("stcontrast._models.image_tower.cross_fit.train_tower", counted)
    with pytest.raises(TimeoutError):
        fitted(epochs=1, checkpoint_dir=tmp_path)

    def noted(*args: Any, **kwargs: Any) -> Any:
        rest.append(1)
        return train_tower(*args, **kwargs)

    monkeypatch.setattr("stcontrast._models.image_tower.cross_fit.train_tower", noted)
    found = fitted(epochs=1, checkpoint_dir=tmp_path)
    assert len(rest) == 2
    unbroken = fitted(epochs=1)
    for one, other in zip([found.encoder, *found.of_fold], [unbroken.encoder, *unbroken.of_fold], strict=True):
        assert one.spec == other.spec
    with pytest.raises(ValueError, match=r"differs in \['(seed|options)'\]"):
        fitted(epochs=2, checkpoint_dir=tmp_path)


def test_too_few_spots_are_refused() -> None:
    data = spots()
    folds = inner_folds(data)
    data.depth[1:], data.label[1:] = 0, -1
    with store_of(data) as store, pytest.raises(ValueError, match="at least two spots with counts or a label; fold"):
        cross_fit(encoder(), CropRows(store, np.arange(48)), data, folds, TowerOptions(**HOW), center=True, seed=0)
