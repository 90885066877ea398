"""Predictions for more spots than memory holds: features, then predictions, part by part, on disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast._data.design import SlideMoments, set_out, surroundings
from stcontrast._data.spots import Spots
from stcontrast._files import ResumableStore, content_hash, written_whole
from stcontrast._keys import LOWER, UPPER
from stcontrast._progress import stage
from stcontrast._reading import names_of, obs_column
from stcontrast._slides import rows_by_slide
from stcontrast.pp._features import FeatureSpec, encode_on_disk, print_of_slide, window_places
from stcontrast.tl._write import interval_holds, prediction_frame, provenance_of, warn_of_intervals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

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
    """Predict the expression of every spot into a zarr store; go on where an earlier call was broken off.

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
    size = CHUNK if model.method.spotwise else n_spots
    done, known = store.flags("predicted", -(-n_spots // size)), store.flags("known", n_spots)
    slide, xy = source.slide_and_xy()
    designs = [
        _SlideDesign(model, store, features, code, item, standardize=standardize)
        for code, item in enumerate(source.slides)
    ]
    group = zarr.open_group(table, mode="r+", use_consolidated=False)
    arrays: dict[str, Any] = {"X": group["X"], LOWER: group[f"layers/{LOWER}"], UPPER: group[f"layers/{UPPER}"]}
    with stage("predictions", total=n_spots, initial=int(done.sum()) * size, unit="spots") as bar:
        for part in np.flatnonzero(~done).tolist():
            rows = np.arange(part * size, min((part + 1) * size, n_spots))
            blocks: dict[str, NDArray[np.float32]] = {
                name: np.empty((len(rows), n_genes), dtype=np.float32) for name in ("X", LOWER, UPPER)
            }
            for here in rows_by_slide(slide[rows]):
                of_slide = rows[here]
                design = designs[slide[of_slide[0]]].of(of_slide)
                known_here = {"features": np.asarray(features[of_slide]), "design": design}
                spots = Spots.of(slide[of_slide], xy[of_slide], blocks=model.spec["blocks"], **known_here)
                found = model.predict_spots(spots)
                known[of_slide] = found.in_distribution
                if not interval_holds(model, provenance[source.slides[slide[of_slide[0]]].name]):
                    found.half_width = np.full_like(found.half_width, np.nan)
                for name, values in (("X", found.expression), (LOWER, found.lower), (UPPER, found.upper)):
                    blocks[name][here] = values
            for start in range(0, len(rows), CHUNK):
                # chunk by chunk: a chunk is written whole or not at all
                for name, values in blocks.items():
                    arrays[name][rows[start] : rows[start] + CHUNK] = values[start : start + CHUNK]
            done[part] = True
            store.save("known", known)
            store.save("predicted", done)
            bar.update(len(rows))


class _SlideDesign:
    """The design of some spots of a slide at a time, standardised within the whole of it, or as the training slides."""

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
        self._n_neighbors, self._blocks = int(model.spec["n_neighbors"]), model.spec["blocks"]
        self._tree = cKDTree(slide.centers)
        # from a row of the table to a spot of the slide
        self._by_row = np.argsort(slide.rows)
        self._moments: SlideMoments | TrainingMoments | None = None
        if model.spec["standardize"] == "slide" and standardize == "training":
            self._moments = model.moments
        elif model.spec["standardize"] == "slide":
            self._moments = moments = self._gathered(store, code)
            deviation = np.sqrt(moments.squares[: sum(self._blocks)] / moments.n)
            model.moments.warn_of_part(repr(slide.name), moments.n, deviation)

    def of(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Design (n, n_columns) of rows of the table that are spots of the slide."""
        block = self._set_out(self._by_row[np.searchsorted(self._slide.rows, rows, sorter=self._by_row)])
        return block if self._moments is None else self._moments.standardized(block)

    def _set_out(self, spots: NDArray[np.intp]) -> NDArray[np.float32]:
        area = surroundings(self._tree, spots, n_neighbors=self._n_neighbors)
        features = np.asarray(self._features[self._slide.rows[area]], dtype=np.float32)
        centers = self._slide.centers[area]
        block = set_out(features, centers, blocks=self._blocks, n_neighbors=self._n_neighbors)
        return block[np.searchsorted(area, spots)]

    def _gathered(self, store: ResumableStore, code: int) -> SlideMoments:
        """Mean and deviation over all spots of the slide, in one walk over it."""
        kept = store.load(f"moments{code}")
        if kept is not None:
            return SlideMoments(int(kept[0, 0]), *kept[1:])
        # neighbours lie together: what a part needs beyond its own spots is little
        order = np.lexsort((self._slide.centers[:, 0], self._slide.centers[:, 1]))
        moments = None
        for start in range(0, len(order), CHUNK):
            part = SlideMoments.of(self._set_out(np.sort(order[start : start + CHUNK])))
            moments = part if moments is None else moments.merged(part)
        if moments is None:
            msg = f"Slide {self._slide.name!r} has no spots."
            raise ValueError(msg)
        n = np.full_like(moments.mean, moments.n)
        store.save(f"moments{code}", np.stack([n, moments.mean, moments.squares, moments.largest]))
        return moments


def _make_table(table: Path, n_spots: int, n_genes: int) -> None:
    """An AnnData store whose numbers are still to come."""
    import dask.array as da
    import zarr
    from anndata import AnnData
    from anndata.io import write_elem

    empty = da.zeros((n_spots, n_genes), chunks=(CHUNK, n_genes), dtype=np.float32)
    with written_whole(table) as scratch:
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
