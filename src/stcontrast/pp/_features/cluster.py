"""Slides and bands of their spots, distributed to the workers of a dask cluster."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._cluster import ATTEMPTS, loaded, n_workers, sent
from stcontrast.pp._features.encoding import encode_centers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import Slide
    from stcontrast.pp._features.encoding import FeatureSpec

__all__ = ["encode_on_cluster"]

logger = logging.getLogger(__name__)

# spots that a worker encodes at once; they are lost if the worker dies
MAX_SHARD: Final = 2048
MIN_SHARD: Final = 128
SHARDS_A_WORKER: Final = 4

type Shard = tuple[int, NDArray[np.intp]]


def encode_on_cluster(
    client: Any, slides: Sequence[Slide], spec: FeatureSpec
) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.float32]]]:
    """Encode the spots of slides on the workers of a cluster.

    Finished features are fetched at once. If a worker dies, another one takes over its unfinished shards. Workers read
    images in a store by their path, and images in memory from a copy on every worker.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    slides, spec
        As in :func:`~stcontrast.pp._features.encode_slides`.

    Yields
    ------
    Position of a slide, of some of its spots (n,), and their features, as they come.
    """
    n_spots = sum(len(slide.centers) for slide in slides)
    size = int(np.clip(np.ceil(n_spots / (n_workers(client) * SHARDS_A_WORKER)), MIN_SHARD, MAX_SHARD))
    shards: list[Shard] = []
    for code, slide in enumerate(slides):
        order = np.lexsort((slide.centers[:, 0], slide.centers[:, 1]))
        shards += [(code, order[start : start + size]) for start in range(0, len(order), size)]
    for _ in range(ATTEMPTS):
        shards = yield from _encode_shards(client, slides, spec, shards)
        if not shards:
            return
        logger.warning("The cluster has lost the images of %d parts with a worker: they are sent again.", len(shards))
    msg = f"The cluster has lost {len(shards)} parts of the slides {ATTEMPTS} times: do its workers have enough memory?"
    raise RuntimeError(msg)


def _encode_shards(
    client: Any, slides: Sequence[Slide], spec: FeatureSpec, shards: Sequence[Shard]
) -> Generator[tuple[int, NDArray[np.intp], NDArray[np.float32]], None, list[Shard]]:
    """Features of shards as they are finished; returns the shards whose image was lost with a worker."""
    from distributed import as_completed

    made_with = sent(client, spec, broadcast=True)
    images = {code: sent(client, slides[code].image, broadcast=True) for code in {code for code, _ in shards}}
    at_work: dict[Any, Shard] = {}
    lost = []
    try:
        for code, rows in shards:
            slide = slides[code]
            future = client.submit(
                _encode_shard, images[code], slide.centers[rows], slide.um_per_px, made_with, pure=False, retries=1
            )
            at_work[future] = code, rows
        for future, features in as_completed(list(at_work), with_results=True):
            shard = at_work.pop(future)
            if future.cancelled():
                lost.append(shard)
            else:
                yield *shard, features
    finally:
        client.cancel(list(at_work))
    return lost


def _encode_shard(image: bytes, centers: NDArray[np.float64], um_per_px: float, spec: bytes) -> NDArray[np.float32]:
    parts = list(encode_centers(loaded(image), centers, um_per_px, loaded(spec)))
    features = np.concatenate([part for _, part in parts])
    ordered = np.empty_like(features)
    ordered[np.concatenate([rows for rows, _ in parts])] = features
    return ordered
