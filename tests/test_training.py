from __future__ import annotations

import logging
import warnings

import pytest

from stcontrast._training import quiet_loggers, quiet_training


def test_levels_are_restored_also_after_an_error():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level

    message = "stop"

    def interrupted() -> None:
        with quiet_training():
            assert not logger.isEnabledFor(logging.INFO)
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        interrupted()
    assert logger.level == before


def test_a_level_above_warning_is_kept():
    logger = logging.getLogger("stcontrast.test.quiet")
    logger.setLevel(logging.CRITICAL)
    with quiet_loggers(logger.name):
        assert logger.level == logging.CRITICAL


def test_only_known_warnings_are_silenced():
    with quiet_training():
        warnings.warn("Last batch will have a small size of 1 samples. Consider", UserWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="learning rate"):
            warnings.warn("the learning rate is odd", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="Last batch"):
        warnings.warn("Last batch will have a small size of 1 samples. Consider", UserWarning, stacklevel=1)
