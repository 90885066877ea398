"""Image features on disk: the work can be interrupted and continued."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast._files import RowsFile
from stcontrast._progress import stage
from stcontrast.pp._features.evidence import warn_of_looks
from stcontrast.pp._features.slides import encode_slides

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast._files import ResumableStore
    from stcontrast._reading import Sections, Slide
    from stcontrast.pp._features.encoding import FeatureSpec

__all__ = ["encode_on_disk"]

logger = logging.getLogger(__name__)

# encoded spots that may be lost when the process dies
UNWRITTEN: Final = 2048


def encode_on_disk(source: Sections, store: ResumableStore, spec: FeatureSpec, number: int) -> RowsFile:
    """A block of image features of all spots, on disk; those that are there are not made again.

    Parameters
    ----------
    source
        The slides, with images.
    store
        Where the features are kept.
    spec
        What they are made with.
    number
        Of the block, by which it is known in the store.
    """
    file = RowsFile(store.folder / f"features{number}.npy", n_rows=source.table.n_obs)
    done = store.flags(f"encoded{number}", source.table.n_obs)
    n_fields = len(spec.fields_um)
    remaining = [_some_spots(slide, ~done[slide.rows]) for slide in source.slides]
    remaining = [slide for slide in remaining if len(slide.rows)]
    if done.any():
        logger.info("%d of %d spots have their features already.", done.sum(), len(done))
    if not remaining:
        return file
    for slide in remaining if number == 0 else ():
        warn_of_looks(slide)
    waiting: list[tuple[NDArray[np.intp], NDArray[np.float32]]] = []

    def write() -> None:
        if waiting:
            rows, values = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            file.write(rows, values)
            done[rows] = True
            store.save(f"encoded{number}", done)
            waiting.clear()

    total, initial = len(done) * n_fields, int(done.sum()) * n_fields
    try:
        with stage(f"features, slide {remaining[0].name}", total=total, initial=initial, unit="crops") as bar:
            for code, positions, values in encode_slides(remaining, spec):
                bar.rename(f"features, slide {remaining[code].name}")
                waiting.append((remaining[code].rows[positions], values))
                bar.update(len(positions) * n_fields)
                if sum(len(rows) for rows, _ in waiting) >= UNWRITTEN:
                    write()
    finally:
        write()
    return file


def _some_spots(slide: Slide, chosen: NDArray[np.bool_]) -> Slide:
    return replace(slide, rows=slide.rows[chosen], centers=slide.centers[chosen])
