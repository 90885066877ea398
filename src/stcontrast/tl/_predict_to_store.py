"""Predictions for more spots than memory holds: features, then predictions, part by part, on disk."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from stcontrast._cluster import running_client, spread
from stcontrast._data import SlideMoments, Spots, parts_of_slide, set_out, surroundings
from stcontrast._files import ResumableStore, content_hash, written_whole
from stcontrast._keys import LOWER, UPPER
from stcontrast._progress import stage
from stcontrast._reading import names_of, obs_column
from stcontrast._slides import rows_by_slide
from stcontrast._training import one_thread
from stcontrast.pp._features import FeatureSpec, encode_on_disk, print_of_slide, window_places
from stcontrast.tl._write import interval_holds, prediction_frame, provenance_of, warn_of_intervals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from stcontrast._data import Prediction
    from stcontrast._reading import Sections, Slide
    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.fitted._moments import TrainingMoments

__all__ = ["predict_to_store"]

logger = logging.getLogger(__name__)

TABLE: Final = "table.zarr"
# spots that are predicted at once, and written as one chunk
CHUNK: Final = 2048


def predict_to_store(
    source: Sections,
    model: Predictor,
    path: Path,
    *,
    blocks: Sequence[NDArray[np.float32] | FeatureSpec],
    donor_key: str | None,
    standardize: StandardizeBy,
) -> AnnData:
    """Predict the expression of every spot into a zarr store, and continue an interrupted call.

    Parameters
    ----------
    source
        The user's object.
    model
        The model.
    path
        The store, which must not exist.
    blocks
        Every block of image features: those that are there (n_spots, n_features), or what they are made with, on disk.
    donor_key
        Column of `obs` with the donor.
    standardize
        By whose moments image features are standardised.

    Returns
    -------
    The prediction, its numbers lazy.
    """
    n_spots = source.table.n_obs
    description = {
        "model_id": model.model_id,
        "standardize": standardize,
        "spots": content_hash(
            [source.table.obs_names.astype(str).tolist()]
            + [part for slide in source.slides for part in (slide.name, slide.rows, slide.centers.round(3))]
        )[:32],
        "features": [
            [print_of_slide(slide, block.record, window_places(slide.centers)) for slide in source.slides]
            if isinstance(block, FeatureSpec)
            else content_hash([np.asarray(block)])
            for block in blocks
        ],
        "donor_key": None
        if donor_key is None
        else [donor_key, content_hash([names_of(obs_column(source.table, donor_key))])],
    }
    with ResumableStore(path.with_name(f"{path.name}.partial"), description, argument="store") as store:
        if store.resumed:
            logger.info("Continuing the prediction in %s.", store.folder)
        parts = [
            encode_on_disk(source, store, block, number) if isinstance(block, FeatureSpec) else block
            for number, block in enumerate(blocks)
        ]
        features: Any = parts[0] if len(parts) == 1 else _Blocks(parts)
        provenance = provenance_of(source, model, features, donor_key=donor_key)
        warn_of_intervals(model, provenance)
        _predict(source, model, store, features, provenance, standardize=standardize)
        known = store.flags("known", n_spots)
        frame = prediction_frame(source, model, known, provenance=provenance, donor_key=donor_key)
        _write_frame(store.folder / TABLE, frame)
        (store.folder / TABLE).rename(path)
        store.remove()
    logger.info("Wrote the prediction to %s.", path)
    return _lazy(path, frame)


class _Blocks:
    """Blocks of features side by side, each in memory or on disk: rows are read from all of them."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.concatenate([np.asarray(part[rows], dtype=np.float32) for part in self._parts], axis=1)


def _predict(
    source: Sections,
    model: Predictor,
    store: ResumableStore,
    features: Any,
    provenance: Mapping[str, str],
    *,
    standardize: StandardizeBy,
) -> None:
    import zarr

    n_spots, n_genes, table = source.table.n_obs, len(model.genes), store.folder / TABLE
    if not table.exists():
        # flags of a table that was published, and whose remains were not cleared away, say nothing of the new one
        store.discard("predicted", "known")
        _make_table(table, n_spots, n_genes)
    if not model.method.spotwise:
        logger.warning(
            "The method %r looks at a slide as a whole: memory grows with the spots of a slide.", model.method.name
        )
    slide, _ = source.slide_and_xy()
    rows_of_part = (
        [np.arange(start, min(start + CHUNK, n_spots)) for start in range(0, n_spots, CHUNK)]
        if model.method.spotwise
        else rows_by_slide(slide)
    )
    done, known = store.flags("predicted", len(rows_of_part)), store.flags("known", n_spots)
    designs = [
        _SlideDesign(model, store, features, code, item, standardize=standardize)
        for code, item in enumerate(source.slides)
    ]
    parts = (
        (part, [designs[slide[here[0]]].piece(here) for here in rows_by_slide(slide, rows_of_part[part])])
        for part in np.flatnonzero(~done).tolist()
    )
    group = zarr.open_group(table, mode="r+", use_consolidated=False)
    arrays: dict[str, Any] = {"X": group["X"], LOWER: group[f"layers/{LOWER}"], UPPER: group[f"layers/{UPPER}"]}
    initial = sum(len(rows_of_part[part]) for part in np.flatnonzero(done))

    def finish(waiting: tuple[int, NDArray[np.intp], Future[None]]) -> None:
        part, rows, writing = waiting
        writing.result()
        done[part] = True
        store.save("known", known)
        store.save("predicted", done)
        bar.update(len(rows))

    # a part is compressed and written while the next one is predicted
    waiting = None
    with (
        stage("predictions", total=n_spots, initial=initial, unit="spots") as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        try:
            for part, pieces in _on_parts(_predicted, model, parts):
                rows = rows_of_part[part]
                blocks: dict[str, NDArray[np.float32]] = {
                    name: np.empty((len(rows), n_genes), dtype=np.float32) for name in ("X", LOWER, UPPER)
                }
                for here, found in zip(rows_by_slide(slide[rows]), pieces, strict=True):
                    of_slide = rows[here]
                    known[of_slide] = found.in_distribution
                    if not interval_holds(model, provenance[source.slides[slide[of_slide[0]]].name]):
                        found.half_width = np.full_like(found.half_width, np.nan)
                    for name, values in (("X", found.expression), (LOWER, found.lower), (UPPER, found.upper)):
                        blocks[name][here] = values
                if waiting is not None:
                    finish(waiting)
                waiting = part, rows, writer.submit(_write, arrays, rows, blocks)
        finally:
            # a prediction that is broken off keeps this part too
            if waiting is not None:
                finish(waiting)


def _write(arrays: Mapping[str, Any], rows: NDArray[np.intp], blocks: Mapping[str, NDArray[np.float32]]) -> None:
    for start in range(0, len(rows), CHUNK):
        # chunk by chunk: a chunk is written whole or not at all
        for name, values in blocks.items():
            arrays[name].set_orthogonal_selection(
                (rows[start : start + CHUNK], slice(None)), values[start : start + CHUNK]
            )


def _on_parts[Part, Result](
    function: Callable[[Predictor, Part], Result], model: Predictor, parts: Iterable[tuple[int, Part]]
) -> Iterator[tuple[int, Result]]:
    """Results of a function of the model and a part, by number: of a running dask client's workers, or made here."""
    client = running_client()
    if client is not None:
        yield from spread(client, function, model, parts)
        return
    for number, part in parts:
        yield number, function(model, part)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Spots of a slide that are predicted together, and what their design rests on.

    Attributes
    ----------
    features, centers
        Of these spots and those around them (n_area, n_features) and (n_area, 2).
    own
        Positions of these spots among them (n,).
    moments
        What standardises the design, if anything does.
    """

    features: NDArray[np.float32]
    centers: NDArray[np.float64]
    own: NDArray[np.intp]
    moments: SlideMoments | TrainingMoments | None

    def design(self, model: Predictor) -> NDArray[np.float32]:
        """Design (n, n_columns), standardised if there are moments."""
        n_neighbors = int(model.spec["n_neighbors"])
        block = set_out(self.features, self.centers, blocks=model.spec["blocks"], n_neighbors=n_neighbors)[self.own]
        return block if self.moments is None else self.moments.standardized(block)


def _predicted(model: Predictor, pieces: Sequence[_Piece]) -> list[Prediction]:
    """Predictions of pieces, each of one slide."""
    found = []
    # the last bits depend on the number of threads, and must not depend on where the piece is predicted
    with threadpool_limits(1), one_thread():
        for piece in pieces:
            known = {"features": piece.features[piece.own], "design": piece.design(model)}
            of_slide = np.zeros(len(piece.own), dtype=np.int64)
            spots = Spots.of(of_slide, piece.centers[piece.own], blocks=model.spec["blocks"], **known)
            found.append(model.predict_spots(spots))
    return found


def _moments(model: Predictor, piece: _Piece) -> SlideMoments:
    """Mean and deviation of the design of a piece."""
    return SlideMoments.of(piece.design(model))


class _SlideDesign:
    """What the design of some spots of a slide at a time is made of; it is standardised within the whole of it, or as the training slides."""

    def __init__(
        self,
        model: Predictor,
        store: ResumableStore,
        features: Any,
        code: int,
        slide: Slide,
        *,
        standardize: StandardizeBy,
    ) -> None:
        from scipy.spatial import cKDTree

        self._features, self._slide = features, slide
        self._n_neighbors = int(model.spec["n_neighbors"])
        self._tree = cKDTree(slide.centers)
        # from a row of the table to a spot of the slide
        self._by_row = np.argsort(slide.rows)
        self._moments: SlideMoments | TrainingMoments | None = None
        if model.spec["standardize"] == "slide" and standardize == "training":
            self._moments = model.moments
        elif model.spec["standardize"] == "slide":
            self._moments = moments = self._gathered(model, store, code)
            deviation = np.sqrt(moments.squares[: sum(model.spec["blocks"])] / moments.n)
            model.moments.warn_of_part(repr(slide.name), moments.n, deviation)

    def piece(self, rows: NDArray[np.intp]) -> _Piece:
        """Rows of the table that are spots of the slide, in ascending order."""
        return self._piece(self._by_row[np.searchsorted(self._slide.rows, rows, sorter=self._by_row)])

    def _piece(self, spots: NDArray[np.intp]) -> _Piece:
        area = surroundings(self._tree, spots, n_neighbors=self._n_neighbors)
        features = np.asarray(self._features[self._slide.rows[area]], dtype=np.float32)
        return _Piece(features, self._slide.centers[area], np.searchsorted(area, spots), self._moments)

    def _gathered(self, model: Predictor, store: ResumableStore, code: int) -> SlideMoments:
        """Mean and deviation over all spots of the slide, in one walk over it."""
        kept = store.load(f"moments{code}")
        if kept is not None:
            return SlideMoments(int(kept[0, 0]), *kept[1:])
        if not len(self._slide.centers):
            msg = f"Slide {self._slide.name!r} has no spots."
            raise ValueError(msg)
        parts = parts_of_slide(self._slide.centers, CHUNK)
        found = dict(_on_parts(_moments, model, ((i, self._piece(part)) for i, part in enumerate(parts))))
        # in one order, whatever came first
        moments = reduce(SlideMoments.merged, [found[i] for i in range(len(parts))])
        n = np.full_like(moments.mean, moments.n)
        store.save(f"moments{code}", np.stack([n, moments.mean, moments.squares, moments.largest]))
        return moments


def _make_table(table: Path, n_spots: int, n_genes: int) -> None:
    """An AnnData store whose numbers are still to come."""
    import dask
    import dask.array as da
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem

    empty = da.zeros((n_spots, n_genes), chunks=(CHUNK, n_genes), dtype=np.float32)
    # in this process: the workers of a cluster may not see the folder
    with written_whole(table) as scratch, dask.config.set(scheduler="threads"):
        # not `write_zarr`, which lists all elements in the root, for good
        write_elem(zarr.open_group(scratch, mode="w"), "/", AnnData(empty, layers={LOWER: empty, UPPER: empty}))


def _write_frame(table: Path, frame: dict[str, Any]) -> None:
    import zarr
    from anndata.io import write_elem

    group = zarr.open_group(table, mode="r+", use_consolidated=False)
    for name, value in frame.items():
        write_elem(group, name, value)


def _lazy(path: Path, frame: dict[str, Any]) -> AnnData:
    import dask.array as da
    from anndata import AnnData

    lazy = {name: da.from_zarr(str(path), component=name) for name in ("X", f"layers/{LOWER}", f"layers/{UPPER}")}
    return AnnData(lazy["X"], layers={LOWER: lazy[f"layers/{LOWER}"], UPPER: lazy[f"layers/{UPPER}"]}, **frame)
