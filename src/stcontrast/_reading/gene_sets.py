"""Sets of genes as the user gives them: a mapping, or a GMT file."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["named_gene_sets"]

GZIP: Final = b"\x1f\x8b"


def named_gene_sets(gene_sets: Mapping[str, Sequence[str]] | str | PathLike[str]) -> dict[str, list[str]]:
    """Genes by the name of their set, each gene once, in the order in which they are given.

    Parameters
    ----------
    gene_sets
        A mapping, or the path of a GMT file: a line for each set, with its name, a description and its genes, separated
        by tabs. It may be compressed (gzip).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no set, a set has no genes, two have one name, a name has a slash, or a file is not a GMT file.
    """
    given = gene_sets if isinstance(gene_sets, Mapping) else _read_gmt(Path(gene_sets))
    if not given:
        msg = "`gene_sets` is empty: give a mapping from the name of a set to its genes."
        raise ValueError(msg)
    return {_name(name): _genes(name, genes) for name, genes in given.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name or "/" in name:
        msg = (
            f"`gene_sets`: the name of a set must be text without a slash (it names columns of `obs`), found {name!r}."
        )
        raise ValueError(msg)
    return name


def _genes(name: str, genes: Any) -> list[str]:
    if isinstance(genes, str) or not isinstance(genes, Sequence | set | frozenset | np.ndarray | pd.Index | pd.Series):
        msg = f"`gene_sets`: the genes of {name!r} must be a list of names, found {genes!r}."
        raise ValueError(msg)
    listed = list(dict.fromkeys(genes))
    odd = [gene for gene in listed if not isinstance(gene, str) or not gene]
    if odd or not listed:
        msg = (
            f"`gene_sets`: the genes of {name!r} must be a list of names, not empty, found {odd[:3] if odd else []!r}."
        )
        raise ValueError(msg)
    return [str(gene) for gene in listed]


def _read_gmt(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        msg = f"`gene_sets`: no file {str(path)!r}."
        raise FileNotFoundError(msg)
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if content.startswith(GZIP) else content).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, OSError) as error:
        msg = f"{str(path)!r} is not a GMT file: it is not text ({error})."
        raise ValueError(msg) from error
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.rstrip().split("\t"))
        genes = [gene for gene in rest[1:] if gene]
        if not genes:
            msg = (
                f"{str(path)!r} is not a GMT file: line {number} must hold a name, a description and at least one gene, "
                f"separated by tabs; found {line[:60]!r}."
            )
            raise ValueError(msg)
        if name in sets:
            msg = f"{str(path)!r}: line {number} holds the set {name!r} again. Names of sets must be unique."
            raise ValueError(msg)
        sets[name] = genes
    return sets
