"""What the spec of a saved model may hold: it may come from anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_spec", "portable"]

# no setting of a method or of a network is a larger number
LARGEST: Final = 10**6


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        msg = "names are not distinct"
        raise ValueError(msg)
    return names


def _plain(value: Any) -> Any:
    """Whether options are plain values of reasonable size."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) and abs(value) > LARGEST and not 0 <= value < 2**32:
        msg = f"{value} is out of range"
        raise ValueError(msg)
    return value


def _no_place(encoder: dict[str, Any]) -> dict[str, Any]:
    """Whether the file of an encoder's weights is a name without a folder, as :func:`portable` writes it."""
    weights = encoder.get("weights") or ""
    if not isinstance(weights, str) or Path(weights).name != weights or "\\" in weights:
        msg = f"the weights {str(weights)[:100]!r} are not the name of a file"
        raise ValueError(msg)
    return encoder


type Names = Annotated[list[str], AfterValidator(_distinct)]
type Options = Annotated[dict[str, Any], AfterValidator(_plain)]


class _Block(BaseModel):
    """What made a block of image features."""

    model_config = ConfigDict(extra="allow", strict=True)

    encoder: Annotated[Options, AfterValidator(_no_place)]


class _Image(BaseModel):
    """What recognises the image of a training slide: its hash, and the corners of the spots in its pixels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    print: str
    box: Annotated[list[float], Field(min_length=4, max_length=4)]


class _Spec(BaseModel):
    """The spec of a :class:`~stcontrast.models.Predictor`; scores and what a method says of its fit come on top."""

    model_config = ConfigDict(extra="allow", strict=True)

    method: str
    method_spec: Options
    genes: Names
    classes: Names
    blocks: list[Annotated[int, Field(ge=1, le=LARGEST)]]
    n_neighbors: Annotated[int, Field(ge=0, le=LARGEST)]
    standardize: Literal["slide", "none"]
    image_features: list[_Block]
    donors: Names
    slides: dict[str, str] = {}
    images: dict[str, _Image] = {}
    gene_side: list[str] = []
    n_spots: Annotated[int, Field(ge=1)]
    n_spots_used: Annotated[int, Field(ge=1)]
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    n_held_out: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    oracle: bool = False
    completed_targets: bool = False
    versions: dict[str, str] = {}


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raise a `pydantic.ValidationError`, which is a ValueError, where a spec is not that of a model."""
    _Spec.model_validate(dict(spec))


def portable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as it is saved: of a file of encoder weights the name alone, as its place is no business of others."""

    def of_block(block: Mapping[str, Any]) -> dict[str, Any]:
        encoder = dict(block["encoder"])
        if encoder.get("weights"):
            encoder["weights"] = Path(encoder["weights"]).name
        return {**block, "encoder": encoder}

    return {**spec, "image_features": [of_block(block) for block in spec["image_features"]]}
