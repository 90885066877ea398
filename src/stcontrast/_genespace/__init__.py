"""Gene spaces: K coordinates of a spot's expression, comparable between donors, with a way back to genes."""

from __future__ import annotations

from stcontrast._genespace._principal import PrincipalSpace
from stcontrast._genespace._scvi import ScviSpace
from stcontrast._genespace._vae import CLASS_WEIGHT, VaeSpace

__all__ = ["CLASS_WEIGHT", "PrincipalSpace", "ScviSpace", "VaeSpace"]
