from __future__ import annotations

import pytest

from stcontrast._models.image_tower import TowerOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, found 0"),
        ({"batch_size": 1}, "`batch_size` must be a whole number of at least 2, found 1"),
        ({"micro_batch": 2.5}, "`micro_batch` must be a whole number of at least 1, found 2.5"),
        ({"stain_jitter": -1.0}, "`stain_jitter` must be a finite number of at least 0, found -1.0"),
        ({"layer_decay": 1.5}, "`layer_decay` must be a finite number above 0 and of at most 1"),
        ({"stop": "early"}, r"`stop` must be one of 'fixed', 'held-out', found 'early'"),
        ({"loss": "own"}, "`loss` must be one of 'joint', 'method', found 'own'"),
        ({"batch_norm": "train"}, "`batch_norm` must be one of 'frozen', 'adapted', found 'train'"),
        ({"stop": "held-out", "devices": 2}, "validates every epoch on one device"),
        ({"checkpoint_dir": __file__}, "is a file. Give a folder"),
        ({"epoch": 1, "rate": 2}, r"Unknown `tower_options` \['epoch', 'rate'\]"),
    ],
)
def test_invalid_options(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TowerOptions.of(given)


def test_the_device_is_no_option_of_the_result() -> None:
    here, there = TowerOptions(), TowerOptions(checkpoint_dir="towers", num_workers=2)
    assert here.of_result == there.of_result
    assert here.of_result != TowerOptions(learning_rate=1e-3).of_result
