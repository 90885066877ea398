"""Settings of the package; every one can also be given as an environment variable ``STCONTRAST_<NAME>``."""

from __future__ import annotations

from pathlib import Path

import pooch
from scverse_misc import Settings

__all__ = ["settings"]


class StcontrastSettings(Settings):
    """Settings of stcontrast."""

    data_dir: Path = Path(pooch.os_cache("stcontrast"))
    """Folder into which data sets are downloaded."""

    data_mirror: str = ""
    """Base address or local folder to take public data sets from instead of their original repository."""

    progress: bool = True
    """Whether to show progress bars."""


settings = StcontrastSettings()
