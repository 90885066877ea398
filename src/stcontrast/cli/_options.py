"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Slides = Annotated[list[Path], typer.Argument(help="SpatialData stores (.zarr) or AnnData (.h5ad).")]
Store = Annotated[Path, typer.Argument(help="SpatialData store (.zarr) or AnnData (.h5ad).")]
ModelFolder = Annotated[Path, typer.Option(help="Folder of a saved model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
DonorKey = Annotated[
    str | None, typer.Option(help="Column of obs with patient or animal (for fit: 'donor' if it exists).")
]
BatchKey = Annotated[str | None, typer.Option(help="Column of obs with the batch that the gene model must not see.")]
LabelKey = Annotated[str | None, typer.Option(help="Column of obs with the annotated subtype.")]
Layer = Annotated[str | None, typer.Option(help="Layer with raw counts; X by default.")]
TableKey = Annotated[str | None, typer.Option(help="Table that holds the spots; the only one by default.")]
ImageKey = Annotated[str | None, typer.Option(help="Image to use, if several lie under the spots.")]
LibraryKey = Annotated[str | None, typer.Option(help="Column of obs that names the slides of an AnnData.")]
UmPerPx = Annotated[float | None, typer.Option(help="µm per pixel, if it cannot be derived.")]
Encoder = Annotated[
    list[str] | None, typer.Option(help="Image encoder (texture, color, a timm name, ...); again for several.")
]
ModelEncoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", help="The encoder that the model was trained with, if it is not part of the model; again for several."
    ),
]  # fmt: skip
FieldUm = Annotated[list[float] | None, typer.Option(help="Side of the crops in µm; again for several.")]
UseRep = Annotated[list[str] | None, typer.Option(help="Slot of obsm with features to learn from; again for several.")]
NGenes = Annotated[
    int | None,
    typer.Option(help="Largest number of genes to choose (1000, and none beside --genes).", show_default=False),
]
MaxSpots = Annotated[
    int, typer.Option(help="Largest number of spots to learn from (stcontrast and baselines); drawn at random of more.")
]
Genes = Annotated[
    str | None, typer.Option(help="Genes to model: names separated by commas, or a file with one per line.")
]
Standardize = Annotated[
    Literal["slide", "training"], typer.Option(help="How image features are standardised; training for a part of a slide.")
]  # fmt: skip
Tower = Annotated[Literal["frozen", "finetune"], typer.Option(help="Whether the encoder is fine-tuned.")]
TowerOption = Annotated[
    list[str] | None, typer.Option(help="Option of fine-tuning, KEY=VALUE or JSON; again for more.")
]
Complete = Annotated[bool, typer.Option("--complete", help="Fill zeros of the training spots first.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]


def options(given: Sequence[str], *, name: str) -> dict[str, Any] | None:
    """Options from ``KEY=VALUE``, whose values are JSON or text, or from JSON objects; `None` where there are none.

    Raises
    ------
    ValueError
        If it is neither.
    """
    found: dict[str, Any] = {}
    for item in given:
        if item.lstrip().startswith("{"):
            try:
                found |= json.loads(item)
            except ValueError as error:
                msg = f"{name} {item!r} is not JSON ({error})."
                raise ValueError(msg) from error
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            msg = f"{name} takes KEY=VALUE or a JSON object, found {item!r}."
            raise ValueError(msg)
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found or None


def listed(given: str | None) -> list[str] | None:
    """Names separated by commas, or one a line in a file; `None` where nothing is given."""
    if given is None:
        return None
    path = Path(given)
    parts = path.read_text().splitlines() if path.is_file() else given.split(",")
    return [part.strip() for part in parts if part.strip()]


def refuse(given: Mapping[str, object], why: str) -> None:
    """Refuse options that would have no effect: wrong usage, before any work."""
    for name in [name for name, value in given.items() if value is not None]:
        option = f"--{name.replace('_', '-')}"
        msg = f"it has no effect here: {why}. Leave it out."
        raise typer.BadParameter(msg, param_hint=option)


def one_or_several(names: list[str] | None) -> str | list[str] | None:
    """One name as itself, several as a list; `None` where there are none."""
    return None if not names else names[0] if len(names) == 1 else names
