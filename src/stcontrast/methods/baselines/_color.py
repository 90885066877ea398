"""The baseline that looks at colour alone."""

from __future__ import annotations

from typing import ClassVar

from stcontrast.methods.baselines._ridge import Ridge

__all__ = ["Color"]


class Color(Ridge):
    """Ridge and logistic regression on colour statistics of the spot's own crops, whatever the encoder."""

    name: ClassVar[str] = "color"
    reference: ClassVar[str] = "Ridge on colour and stain statistics, no neighbours"
    n_neighbors: ClassVar[int] = 0
    uses_color: ClassVar[bool] = True
