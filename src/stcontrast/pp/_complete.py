"""`complete`: fill dropouts in the counts with SpaCKLE, as targets for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import sparse

from stcontrast._arguments import checked
from stcontrast._data import columns_of_genes, log_normalize_sparse, n_variable_genes, stack_positions, stack_tables
from stcontrast._keys import COMPLETED
from stcontrast._progress import stage
from stcontrast._reading import Keys, raw_counts, resolve_all
from stcontrast._records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["complete"]

# most variable genes that are completed, unless the user says otherwise
N_GENES: Final = 1000
USE: Final = "Completed values are smooth and easy to predict: for training targets only, never for what is scored."


@checked()
@stage("complete", whole=True)
def complete(  # noqa: PLR0913
    data: SpatialData | AnnData | Sequence[SpatialData | AnnData],
    *,
    layer: str | None = None,
    n_genes: int | None = None,
    genes: Sequence[str] | None = None,
    key_added: str = COMPLETED,
    table_key: str | None = None,
    library_key: str | None = None,
    max_steps: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Fill dropouts in the counts, as targets for training.

    A zero is treated as missing. A small transformer fills it from the other genes of the spot and from its 18 nearest
    neighbours on the slide. The transformer is trained on all slides given here, to recover measured values that were
    hidden from it. Measured values stay unchanged.

    .. warning::
        Completion makes expression smooth, and therefore easier to predict. Use it only for *training* targets. Score
        against measured values, and never include held-out donors.

    Parameters
    ----------
    data
        One object or a list of them: SpatialData whose table annotates the spots, or AnnData with
        ``obsm["spatial"]``. One network is trained on all of them: training donors only.
    layer
        Layer with raw counts; `X` by default.
    n_genes
        Largest number of genes to choose: the most variable of those seen in 10 % of the spots. By default 1000, and
        none beside `genes`.
    genes
        Names of the genes to complete. With `n_genes`: these and the most variable ones.
    key_added
        Layer to write.
    table_key
        Table that holds the spots; the only one by default.
    library_key
        AnnData only: column of `obs` that names the slide of a spot.
    max_steps
        Largest number of training steps.
    seed
        Random seed. The random state of your session is not changed.
    overwrite
        Replace a layer that stcontrast did not write. A layer that stcontrast wrote is always replaced.

    Returns
    -------
    `None`. Writes to every table ``layers[key_added]``, csr float32 (n_obs, n_vars): log(1 + counts per 10 000 of the
    full library), completed for the chosen genes and measured for all others. Spots without any counts stay empty.
    Also writes ``uns["stcontrast"]["completion"]``: genes, how many entries were filled, seed, and what it may be used
    for (``uns["stcontrast"]["completion_<key_added>"]`` where `key_added` is not the default).

    Raises
    ------
    KeyError
        If a layer, table, column or gene is absent. The message lists those that exist.
    TypeError
        If `data` is something else.
    ValueError
        If counts are not raw, `key_added` holds something else, the objects share no genes, an object is given twice,
        no gene is seen in 10 % of the spots, or there are no counts at all. All are raised before any work is done.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> stc.pp.complete(sdata, max_steps=20)
    >>> measured, completed = sdata["table"].X, sdata["table"].layers["stc_completed"]
    >>> completed.nnz > measured.nnz
    True

    References
    ----------
    Mejía et al. 2024 (SpaCKLE, arXiv 2407.13027).
    """
    from stcontrast.pp._completion import Completer

    completer = Completer(max_steps=max_steps, seed=seed)
    sources = resolve_all(data, Keys(table_key=table_key, slide_key=library_key))
    tables = [source.table for source in sources]
    _check_objects(tables, key_added, overwrite=overwrite)
    slide, xy = stack_positions(sources)
    spots = stack_tables(tables, slide, xy, layer=layer, label_key=None)
    names, measured = list(spots.genes), spots.measured
    if not measured.any():
        msg = "Nothing to complete: no spot has any counts."
        raise ValueError(msg)
    chosen = columns_of_genes(spots, genes or (), n_variable_genes(n_genes, genes, default=N_GENES))
    # never dense: these are all the genes of the table
    ends = np.cumsum([table.n_obs for table in tables])[:-1]
    depths = np.split(spots.depth, ends)
    normalized = [
        log_normalize_sparse(raw_counts(table, layer), depth) for table, depth in zip(tables, depths, strict=True)
    ]
    of_genes = [names[i] for i in chosen]
    columns = [table.var_names.get_indexer(of_genes) for table in tables]
    dense = [matrix[:, here].toarray() for matrix, here in zip(normalized, columns, strict=True)]
    expression = np.concatenate(dense)[measured]
    completer.fit(expression, slide[measured], xy[measured])
    # a spot without counts was not measured: it stays empty and is not a neighbour of other spots
    filled = np.zeros((len(measured), len(of_genes)), dtype=np.float32)
    filled[measured] = completer.complete(expression, slide[measured], xy[measured])
    filled[measured] *= expression == 0
    for table, matrix, part, here in zip(tables, normalized, np.split(filled, ends), columns, strict=True):
        added = _spread(part, here, table.n_vars)
        table.layers[key_added] = sparse.csr_matrix(matrix + added)
        record = {
            "layer": key_added,
            "genes": of_genes,
            "n_filled": int(added.nnz),
            "max_steps": int(max_steps),
            "seed": int(seed),
            "use": USE,
        }
        write_record(table, "completion", record, key_added)


def _check_objects(tables: list[AnnData], key_added: str, *, overwrite: bool) -> None:
    if len({id(table) for table in tables}) < len(tables):
        msg = "An object is given twice."
        raise ValueError(msg)
    for table in tables:
        if not overwrite and key_added in table.layers and read_record(table, "completion", key_added) is None:
            msg = (
                f"`layers[{key_added!r}]` holds something that stcontrast did not write: give another `key_added`, or "
                "`overwrite=True` to replace it."
            )
            raise ValueError(msg)


def _spread(values: NDArray[np.float32], columns: NDArray[np.intp], n_vars: int) -> sparse.csr_matrix:
    """Columns of a dense matrix at their places among all genes."""
    part = sparse.csr_matrix(values)
    spread = sparse.csr_matrix((part.data, columns[part.indices], part.indptr), shape=(len(values), n_vars))
    spread.sort_indices()
    return spread
