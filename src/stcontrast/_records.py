"""What made a slot: the record that stcontrast writes into ``uns["stcontrast"]`` for every slot that it fills."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from stcontrast._keys import CLASS, COMPLETED, EMBEDDING, IMAGE_FEATURES, UNS, VAE_LATENT

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["VERSION", "Record", "read_record", "record_key", "storable", "write_record"]

VERSION: Final = version("stcontrast")

type Record = Literal[
    "classification",
    "completion",
    "embed_genes",
    "embedding",
    "gene_score",
    "image_features",
    "prediction",
    "tissue_grid",
]

# a record describes this slot where no other is named; a prediction and a grid are tables of their own
DEFAULT_SLOTS: Final[dict[str, str]] = {
    "classification": CLASS,
    "completion": COMPLETED,
    "embed_genes": VAE_LATENT,
    "embedding": EMBEDDING,
    "image_features": IMAGE_FEATURES,
}


def record_key(record: Record, slot: str | None = None) -> str:
    """Key of a record in ``uns["stcontrast"]``; it names the slot where that is not the default one."""
    return record if slot in (None, DEFAULT_SLOTS.get(record)) else f"{record}_{slot}"


def write_record(table: AnnData, record: Record, values: Mapping[str, Any], slot: str | None = None) -> None:
    """Write what made a slot, and the version that wrote it."""
    table.uns.setdefault(UNS, {})[record_key(record, slot)] = {**storable(values), "version": VERSION}


def read_record(table: AnnData, record: Record, slot: str | None = None) -> dict[str, Any] | None:
    """What made a slot, as plain values; `None` where stcontrast has not written the slot."""
    found = table.uns.get(UNS, {}).get(record_key(record, slot))
    return None if found is None else _plain(found)


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with keys that a file can hold: a slash in the name of a slide is written ``%2F``."""
    return {
        name.replace("%", "%25").replace("/", "%2F"): storable(item) if isinstance(item, Mapping) else item
        for name, item in values.items()
    }


def _plain(value: Any) -> Any:
    # zarr returns arrays for lists, and numpy scalars for numbers
    if isinstance(value, Mapping):
        return {key.replace("%2F", "/").replace("%25", "%"): _plain(item) for key, item in value.items()}
    # of an AnnData that was opened lazily
    value = value.compute(scheduler="threads") if hasattr(value, "compute") else value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
