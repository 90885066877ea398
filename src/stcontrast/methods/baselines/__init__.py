"""Baselines: what every method is compared with."""

from __future__ import annotations

from stcontrast.methods.baselines._color import Color
from stcontrast.methods.baselines._depth import Depth
from stcontrast.methods.baselines._field import Field
from stcontrast.methods.baselines._given import Given
from stcontrast.methods.baselines._kernel import Kernel
from stcontrast.methods.baselines._knn import Knn
from stcontrast.methods.baselines._mean import Mean
from stcontrast.methods.baselines._mlp import Mlp
from stcontrast.methods.baselines._ridge import Ridge

__all__ = ["Color", "Depth", "Field", "Given", "Kernel", "Knn", "Mean", "Mlp", "Ridge"]
