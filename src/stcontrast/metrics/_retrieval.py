"""Whether an image embedding finds the gene embedding of its own spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["retrieval_recall"]

# numbers in the table of similarities that is made at once: 128 MiB of float64
CHUNK: Final = 2**24
MAX_ROWS: Final = 2048
# similarities nearer than this are the same, but for rounding
TIE: Final = 1e-12


def retrieval_recall(
    image: NDArray[np.floating], gene: NDArray[np.floating], slide: NDArray[Any], *, k: int = 10
) -> pd.DataFrame:
    """Recall at k from image to gene, within slides.

    A spot is found if its own gene embedding is among the k of its slide that are most alike to its image embedding by
    cosine. Other slides are not searched: telling slides apart finds nothing. Of gene embeddings that are equally
    alike, any may come first, so a spot among them counts by its probability of being among the k. Embeddings that have
    all collapsed onto one point therefore score chance, as do random ones. An embedding of length 0 is alike to every
    other by 0.

    Parameters
    ----------
    image, gene
        Embeddings (n_spots, d) in the joint space; row i of both is the same spot. A spot with a number that is not
        finite in either, such as one without counts, is left out, also of what is searched.
    slide
        Slide of every spot (n_spots,); a spot without one is left out.
    k
        How many may come before it is not found.

    Returns
    -------
    A row for every slide that has a spot left, indexed by slide in sorted order:

    - ``recall``: share of its spots that are found, 0 to 1;
    - ``chance``: that share at random, the smaller of 1 and k / n_spots. Recalls of slides of different sizes compare
      only beside it;
    - ``n_spots``: spots that were searched, and searched for.

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
    """Probability of every spot (n,) that its own row of `gene` is among the k most alike."""
    queries, bank = _unit(image), _unit(gene)
    n = len(bank)
    found = np.empty(n)
    step = max(1, min(MAX_ROWS, CHUNK // n))
    for start in range(0, n, step):
        part = slice(start, start + step)
        similarity = queries[part] @ bank.T
        ids = np.arange(len(similarity))
        similarity -= similarity[ids, start + ids][:, None]  # above 0: more alike than its own
        before = (similarity > TIE).sum(axis=1)
        tied = (similarity >= -TIE).sum(axis=1) - before  # its own is one of them
        found[part] = np.clip((k - before) / tied, 0.0, 1.0)
    return found


def _unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
