"""Scores of embeddings: whether an image finds its own genes, and whether batches are mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["batch_mixing", "lisi", "retrieval_recall"]

# number of similarities that are computed at once: 128 MiB of float64
CHUNK: Final = 2**24
MAX_ROWS: Final = 2048
# similarities that differ by less are equal up to rounding
TIE: Final = 1e-12
# of spots at equal distance the search takes the first: their order must not be that of the batches
SEED: Final = 0
# with fewer the perplexity is 1, for which LISI is not defined
MIN_NEIGHBORS: Final = 6


def retrieval_recall(
    image: NDArray[np.floating], gene: NDArray[np.floating], slide: NDArray[Any], *, k: int = 10
) -> pd.DataFrame:
    """Recall at k from image to gene, within slides.

    A spot is found if its own gene embedding is among the k of its slide with the highest cosine similarity to its image
    embedding. Other slides are not searched, so differences between slides do not help. In case of ties any order is
    possible: a tied spot counts by its probability of being among the k. So embeddings that have collapsed onto one
    point score chance, like random ones. An embedding of length 0 has similarity 0 to every other.

    Parameters
    ----------
    image, gene
        Embeddings (n_spots, d) in the joint space; row i of both is the same spot. A spot with a value that is not
        finite in either, such as one without counts, is left out, also as a candidate.
    slide
        Slide of every spot (n_spots,); a spot without one is left out.
    k
        Number of most similar gene embeddings in which a spot must be.

    Returns
    -------
    A row for every slide with usable spots, indexed by slide in sorted order:

    - ``recall``: fraction of its spots that are found, 0 to 1;
    - ``chance``: that fraction at random, the smaller of 1 and k / n_spots. Slides of different sizes are comparable
      only relative to it;
    - ``n_spots``: number of spots, which are both queries and candidates.

    Raises
    ------
    ValueError
        If the shapes do not agree, or ``k`` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> gene = np.eye(4)
    >>> slide = np.array(["a", "a", "b", "b"])
    >>> stc.metrics.retrieval_recall(gene[[0, 1, 3, 2]], gene, slide, k=1).T
    slide      a    b
    recall   1.0  0.0
    chance   0.5  0.5
    n_spots  2.0  2.0

    References
    ----------
    Hodosh, Young and Hockenmaier 2013 (Framing image description as a ranking task).
    """
    image, gene, slide = np.asarray(image), np.asarray(gene), np.asarray(slide)
    if image.ndim != 2 or image.shape != gene.shape:
        msg = f"`image` has shape {image.shape}, `gene` {gene.shape}; both must be the same (n_spots, d)."
        raise ValueError(msg)
    if slide.shape != (len(image),):
        msg = f"`slide` has shape {slide.shape}, expected ({len(image)},): one for every row of `image`."
        raise ValueError(msg)
    if k < 1:
        msg = f"`k` is {k}, expected 1 or more."
        raise ValueError(msg)
    codes, names = pd.factorize(slide, sort=True)
    usable = np.isfinite(image).all(axis=1) & np.isfinite(gene).all(axis=1)
    index, rows = [], []
    for code, name in enumerate(names):
        here = np.flatnonzero((codes == code) & usable)
        if len(here):
            index.append(name)
            rows.append((_found(image[here], gene[here], k).mean(), min(1.0, k / len(here)), len(here)))
    table = pd.DataFrame(rows, columns=["recall", "chance", "n_spots"], index=pd.Index(index, name="slide"))
    return table.astype({"recall": float, "chance": float, "n_spots": int})


def _found(image: NDArray[np.floating], gene: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """Probability of every spot (n,) that its own row of `gene` is among the k most similar."""
    queries, bank = _unit(image), _unit(gene)
    n = len(bank)
    found = np.empty(n)
    step = max(1, min(MAX_ROWS, CHUNK // n))
    for start in range(0, n, step):
        part = slice(start, start + step)
        similarity = queries[part] @ bank.T
        ids = np.arange(len(similarity))
        similarity -= similarity[ids, start + ids][:, None]  # above 0: more similar than its own
        before = (similarity > TIE).sum(axis=1)
        tied = (similarity >= -TIE).sum(axis=1) - before  # its own is one of them
        found[part] = np.clip((k - before) / tied, 0.0, 1.0)
    return found


def _unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def batch_mixing(
    embedding: NDArray[np.floating], batch: NDArray[Any], *, label: NDArray[Any] | None = None, n_neighbors: int = 90
) -> pd.DataFrame:
    """Fraction of nearest neighbours from the same batch, and agreement of other batches on the label.

    Mixing alone does not make a good embedding: noise and a collapsed embedding mix batches perfectly. With labels, the
    second half of the table shows whether biology is preserved. If the batches differ in tissue, they should not mix
    fully.

    Parameters
    ----------
    embedding
        Embedding (n_spots, d). A spot with a value that is not finite is left out.
    batch
        Batch, such as slide or donor, of every spot (n_spots,); a spot without one is left out.
    label
        Label, such as subtype, of every spot (n_spots,). Spots without one (None or NaN) count for the mixing, not for
        the agreement.
    n_neighbors
        Number of neighbours by Euclidean distance, without the spot itself; all if there are fewer.

    Returns
    -------
    A row for every batch, indexed by batch in sorted order; means over its spots:

    - ``same_batch_fraction``: fraction of the nearest neighbours that are from the same batch, 0 to 1. A batch of fewer
      than ``n_neighbors`` + 1 spots cannot reach 1;
    - ``expected``: that fraction without any effect of the batch: (n_batch - 1) / (n - 1);
    - ``n_spots``: number of spots of the batch;

    and with ``label``, for the spots with a label:

    - ``label_agreement``: fraction with the same label among the nearest labelled spots *of other batches*, 0 to 1; NaN
      if there are none;
    - ``label_expected``: that fraction without any effect of the embedding: the frequency of the label in the other
      batches.

    Raises
    ------
    ValueError
        If lengths do not agree, there are fewer than two batches, or ``n_neighbors`` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> embedding = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> batch = np.array(["a", "a", "b", "b"])
    >>> label = np.array(["tumor", "stroma", "tumor", "tumor"])
    >>> stc.metrics.batch_mixing(embedding, batch, label=label, n_neighbors=1).T.round(2)
    batch                   a     b
    same_batch_fraction  1.00  1.00
    expected             0.33  0.33
    n_spots              2.00  2.00
    label_agreement      0.50  0.00
    label_expected       0.50  0.50

    References
    ----------
    Our own metric, similar to those of Luecken et al. 2022 (Benchmarking atlas-level data integration in single-cell genomics).
    """
    points, codes, names, label_codes = _checked(embedding, batch, label, n_neighbors)
    _, near = _neighbors(points, n_neighbors)
    same = (codes[near] == codes[:, None]).mean(axis=1)
    size = np.bincount(codes)
    table = pd.DataFrame(
        {
            "same_batch_fraction": np.bincount(codes, weights=same) / size,
            "expected": (size - 1) / (len(codes) - 1),
            "n_spots": size,
        },
        index=pd.Index(names, name="batch"),
    )
    if label_codes is not None:
        agreement = [_agreement(points, codes == code, label_codes, n_neighbors) for code in range(len(names))]
        table["label_agreement"] = [found for found, _ in agreement]
        table["label_expected"] = [expected for _, expected in agreement]
    return table


def lisi(
    embedding: NDArray[np.floating], batch: NDArray[Any], *, label: NDArray[Any] | None = None, n_neighbors: int = 90
) -> pd.Series:
    """Local inverse Simpson's index of batches and labels, scaled as in scib-metrics; needs the extra ``benchmark``.

    The index is the effective number of batches, or labels, in a spot's neighbourhood. It is computed by scib-metrics
    on the exact nearest neighbours, and its median over spots is scaled to 0 to 1, so that higher is better in both.
    The size of the batches matters: if one is much larger than the others, the best possible ``ilisi`` is below 1.
    As with :func:`batch_mixing`, mixing alone does not make a good embedding.

    Parameters
    ----------
    embedding
        Embedding (n_spots, d). A spot with a value that is not finite is left out.
    batch
        Batch, such as slide or donor, of every spot (n_spots,); a spot without one is left out.
    label
        Label, such as subtype, of every spot (n_spots,). For ``clisi``, spots without one (None or NaN) are left out
        before neighbours are searched.
    n_neighbors
        Number of neighbours by Euclidean distance, without the spot itself; all if there are fewer. The perplexity
        is a third of it.

    Returns
    -------
    Values without unit:

    - ``ilisi``: 0 if every neighbourhood has one batch, 1 if it has all in equal parts;
    - ``clisi``, with ``label``: 1 if every neighbourhood has one label, 0 if it has all in equal parts; NaN if the spots
      have fewer than two labels, or if too few spots have one.

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    ValueError
        If lengths do not agree, there are fewer than two batches, or fewer than 6 neighbours.

    Examples
    --------
    >>> import numpy as np
    >>> import stcontrast as stc
    >>> rng = np.random.default_rng(0)
    >>> batch = np.repeat(["a", "b"], 200)
    >>> mixed = rng.normal(size=(400, 5))
    >>> apart = mixed + 100.0 * (batch == "b")[:, None]
    >>> bool(stc.metrics.lisi(mixed, batch)["ilisi"] > 0.8), bool(stc.metrics.lisi(apart, batch)["ilisi"] < 0.01)
    (True, True)

    References
    ----------
    Korsunsky et al. 2019 (Fast, sensitive and accurate integration of single-cell data with Harmony); the scaling:
    Luecken et al. 2022 (Benchmarking atlas-level data integration in single-cell genomics).
    """
    try:
        from scib_metrics import clisi_knn, ilisi_knn
        from scib_metrics.nearest_neighbors import NeighborsResults
    except ImportError as error:
        msg = 'LISI is computed by scib-metrics, which is not installed: pip install "stcontrast[benchmark]"'
        raise ImportError(msg) from error
    points, codes, _, label_codes = _checked(embedding, batch, label, n_neighbors)
    if min(n_neighbors, len(codes) - 1) < MIN_NEIGHBORS:
        msg = f"{min(n_neighbors, len(codes) - 1)} neighbours are too few for LISI, which needs {MIN_NEIGHBORS}."
        raise ValueError(msg)

    def results(values: NDArray[np.float64]) -> Any:
        distances, near = _neighbors(values, n_neighbors)
        # neither changes the index; without, exp(-beta d) of float32 is 0 where all neighbours are about as far
        distances -= distances[:, :1]
        distances /= np.maximum(distances[:, -1:], 1e-300)
        return NeighborsResults(indices=near, distances=distances)

    scores = {"ilisi": float(ilisi_knn(results(points), codes))}
    if label_codes is not None:
        labelled = np.flatnonzero(label_codes >= 0)
        enough = len(labelled) > MIN_NEIGHBORS and len(np.unique(label_codes[labelled])) > 1
        scores["clisi"] = float(clisi_knn(results(points[labelled]), label_codes[labelled])) if enough else float("nan")
    return pd.Series(scores, name="lisi")


def _checked(
    embedding: NDArray[np.floating], batch: NDArray[Any], label: NDArray[Any] | None, n_neighbors: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[Any], NDArray[np.int64] | None]:
    """Embedding, codes and names of batches, and codes of labels (-1 is none), of the usable spots."""
    points: NDArray[np.float64] = np.asarray(embedding, dtype=np.float64)
    if points.ndim != 2:
        msg = f"`embedding` has shape {points.shape}, expected (n_spots, d)."
        raise ValueError(msg)
    for name, values in (("batch", batch), ("label", label)):
        if values is not None and np.shape(values) != (len(points),):
            msg = f"`{name}` has shape {np.shape(values)}, expected ({len(points)},): one for every row."
            raise ValueError(msg)
    if n_neighbors < 1:
        msg = f"`n_neighbors` is {n_neighbors}, expected 1 or more."
        raise ValueError(msg)
    batch = np.asarray(batch)
    rows = np.flatnonzero(np.isfinite(points).all(axis=1) & ~pd.isna(batch))
    codes, names = pd.factorize(batch[rows], sort=True)
    if len(names) < 2:
        msg = f"Mixing needs two batches or more; the spots with an embedding are from {len(names)}."
        raise ValueError(msg)
    label_codes = None if label is None else pd.factorize(np.asarray(label)[rows], sort=True)[0]
    return points[rows], codes, names, label_codes


def _neighbors(
    embedding: NDArray[np.float64], k: int, queries: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances and rows (n, k) of the nearest; without queries, those of every row, without itself."""
    from sklearn.neighbors import NearestNeighbors

    order = np.random.default_rng(SEED).permutation(len(embedding))
    search = NearestNeighbors().fit(embedding[order])
    if queries is not None:
        distances, near = search.kneighbors(queries, min(k, len(order)))
        return distances, order[near]
    distances, near = search.kneighbors(n_neighbors=min(k, len(order) - 1))
    back = np.argsort(order)
    return distances[back], order[near[back]]


def _agreement(
    embedding: NDArray[np.float64], here: NDArray[np.bool_], label: NDArray[np.int64], k: int
) -> tuple[float, float]:
    """Fraction of equal labels among the nearest labelled spots of other batches, and among all of them."""
    own, others = np.flatnonzero(here & (label >= 0)), np.flatnonzero(~here & (label >= 0))
    if not len(own) or not len(others):
        return float("nan"), float("nan")
    _, near = _neighbors(embedding[others], k, embedding[own])
    agreement = (label[others][near] == label[own][:, None]).mean()
    share = np.bincount(label[others], minlength=label.max() + 1) / len(others)
    return float(agreement), float(share[label[own]].mean())
