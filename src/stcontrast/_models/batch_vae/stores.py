"""AnnData objects on disk: opened, compared, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anndata as ad
import pandas as pd
import zarr
from anndata.abc import CSRDataset

from stcontrast._models.batch_vae.counts import first_few
from stcontrast._reading import not_a_count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Store", "anndatas", "check_first_counts", "common_genes", "obs_column", "opened"]

# spots of each store that are checked before training; every minibatch is checked when it is read
N_CHECKED_AT_FIRST: Final = 1024
COLLECTION: Final = "annbatch-preshuffled"


class Store(NamedTuple):
    """One AnnData on disk."""

    name: str
    group: Any
    counts: Any


def anndatas(path: Path) -> Iterator[tuple[str, Any]]:
    """Every AnnData of a store or collection, with its name."""
    if path.suffix in (".h5ad", ".h5"):
        msg = (
            f"{path} is HDF5; training reads zarr. annbatch.DatasetCollection('spots.zarr').add_adatas(['{path}'], "
            "dataset_size='1GB') makes a store of it without loading it whole."
        )
        raise ValueError(msg)
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)
    try:
        # Any: only its encoding tells the type of an element
        group: Any = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        msg = f"{path} is not a zarr group; AnnData.write_zarr writes one."
        raise ValueError(msg) from error
    if group.attrs.get("encoding-type") == COLLECTION:
        parts = [name for name in group if name.startswith("dataset_")]
        yield from ((f"{path}/{name}", group[name]) for name in sorted(parts, key=lambda name: int(name[8:])))
    elif {"X", "obs", "var"} <= set(group):
        yield str(path), group
    else:
        msg = f"{path} holds no AnnData: it has {sorted(group)}, and needs X, obs and var."
        raise ValueError(msg)


def opened(name: str, group: Any, layer: str | None) -> Store:
    """One AnnData, with its counts as they are on disk."""
    layers = sorted(group["layers"]) if "layers" in group else []
    if layer is not None and layer not in layers:
        msg = f"layer {layer!r} is not in {name}, which has the layers {layers}. layer=None takes X."
        raise KeyError(msg)
    element = group["X"] if layer is None else group["layers"][layer]
    if isinstance(element, zarr.Array):
        return Store(name, group, element)
    kind = element.attrs.get("encoding-type")
    if kind != "csr_matrix":
        msg = (
            f"the counts of {name} are stored as {kind}; training reads rows, from CSR or dense: write them again "
            "from a matrix.tocsr()."
        )
        raise ValueError(msg)
    return Store(name, group, ad.io.sparse_dataset(element))


def common_genes(stores: list[Store]) -> pd.Index:
    """Genes of all stores. Raises if the genes differ, or the form of the counts."""
    genes = _index_of(stores[0].group["var"])
    for store in stores[1:]:
        names = _index_of(store.group["var"])
        if names.equals(genes):
            continue
        only = [f"{first_few(extra)} only in {where}" for extra, where in (
            (genes.difference(names), stores[0].name), (names.difference(genes), store.name)
        ) if len(extra)]  # fmt: skip
        msg = (
            f"genes differ between stores: {'; '.join(only) or f'{store.name} has them in another order'}. Write all "
            "with the same genes in one order; annbatch.DatasetCollection.add_adatas does so with var_subset=."
        )
        raise ValueError(msg)
    if any(type(store.counts) is not type(stores[0].counts) for store in stores):
        forms = {store.name: "CSR" if isinstance(store.counts, CSRDataset) else "dense" for store in stores}
        msg = f"counts are stored in different forms: {forms}; write them all as CSR, or all dense."
        raise ValueError(msg)
    return genes


def _index_of(frame: Any) -> pd.Index:
    return pd.Index(ad.io.read_elem(frame[frame.attrs["_index"]]))


def obs_column(store: Store, key: str, argument: str) -> pd.Categorical:
    """A column of `obs`, which must have a value for every spot."""
    obs = store.group["obs"]
    columns = list(obs.attrs["column-order"])
    if key not in columns:
        msg = f"{argument} {key!r} is not in obs of {store.name}, which has {columns}."
        raise KeyError(msg)
    values = pd.Categorical(ad.io.read_elem(obs[key]))
    if n_missing := int(values.isna().sum()):
        msg = f"obs[{key!r}] of {store.name} has {n_missing} missing values; {argument} needs a value for every spot."
        raise ValueError(msg)
    return values


def check_first_counts(store: Store, layer: str | None) -> None:
    """Raise if the first values of a store are not counts."""
    found = not_a_count(store.counts[:N_CHECKED_AT_FIRST])
    if found is not None:
        where = "X" if layer is None else f"layers[{layer!r}]"
        msg = (
            f"{where} of {store.name} does not hold raw counts: it has {found}. BatchAgnosticVAE models counts, not "
            "normalised values; name the layer that holds them with layer=."
        )
        raise ValueError(msg)
