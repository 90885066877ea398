"""Crops of all fields of view through an encoder, encoded while the next are cut."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stcontrast.pp._crops import iter_batches
from stcontrast.pp._encoders import encoder_from_spec
from stcontrast.pp._stain import stain_from_spec

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from stcontrast._reading import SlideImage
    from stcontrast.pp._encoders import Encoder
    from stcontrast.pp._stain import StainNormalizer


__all__ = ["FeatureSpec", "encode_centers", "feature_spec", "pair_encoders", "prefetched"]

POLL_S: Final = 0.1
# crops that an encoder is given at once
BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What image features are made with.

    Attributes
    ----------
    encoder
        The encoder.
    fields_um
        Sides of the crops in µm.
    stain
        How the stain is normalised before encoding; `None` if it is not.
    """

    encoder: Encoder
    fields_um: tuple[float, ...]
    stain: StainNormalizer | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The spec as plain values, for the record of the features."""
        record = {"encoder": self.encoder.spec, "field_um": [float(value) for value in self.fields_um]}
        return record if self.stain is None else record | {"stain": self.stain.spec}

    def sides(self, um_per_px: float) -> list[float]:
        """Sides of the crops in pixels."""
        return [field / um_per_px for field in self.fields_um]


def feature_spec(
    record: Mapping[str, Any], *, encoder: Encoder | None = None, allow_download: bool = True
) -> FeatureSpec:
    """The spec of a recorded block of features; `encoder` replaces one that cannot be made from its record."""
    stain = stain_from_spec(record["stain"]) if record.get("stain") else None
    made = encoder or encoder_from_spec(record["encoder"], allow_download=allow_download)
    return FeatureSpec(made, tuple(record["field_um"]), stain)


def pair_encoders(made_by: Sequence[Mapping[str, Any]], encoders: Sequence[Encoder] | None) -> list[Encoder | None]:
    """The user's encoder for every block of a model; `None` where it is made from its record, or cannot be made.

    Raises
    ------
    ValueError
        If there are more or fewer than blocks that an encoder makes.
    """
    if encoders is None:
        return [None] * len(made_by)
    names = [record["encoder"]["name"] for record in made_by if record["encoder"]["kind"] != "given"]
    if len(encoders) != len(names):
        msg = (
            f"`encoder`: the model has {len(names)} blocks of features that an encoder makes, {names}, found "
            f"{len(encoders)} encoders. Give one for each, in this order."
        )
        raise ValueError(msg)
    remaining = iter(encoders)
    return [None if record["encoder"]["kind"] == "given" else next(remaining) for record in made_by]


def encode_centers(
    image: SlideImage, centers: NDArray[np.float64], um_per_px: float, spec: FeatureSpec
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Encode the squares around some points of one slide.

    Parameters
    ----------
    image
        The slide; its stain is estimated from the whole of it, whatever the points.
    centers
        x, y in pixels of its finest level (n_spots, 2).
    um_per_px
        µm per pixel of that level.
    spec
        What the features are made with.

    Yields
    ------
    Positions of points (n,) and their features (n, n_fields × n_features), in the order in which the image is read.

    Raises
    ------
    ValueError
        If the encoder returns something else than finite features of one shape.
    """
    stain = None if spec.stain is None else spec.stain.fit_slide(image)
    encoder, n_fields = spec.encoder, len(spec.fields_um)
    batches = iter_batches(
        image, centers, sides=spec.sides(um_per_px), size_px=encoder.size_px, batch=max(1, BATCH // n_fields)
    )
    width = None
    with closing(prefetched(batches)) as ahead:
        for rows, crops in ahead:
            flat = crops.reshape(-1, *crops.shape[2:])
            features = encoder(flat if stain is None else stain.apply(flat))
            width = features.shape[-1] if width is None else width
            if features.shape != (len(flat), width):
                msg = (
                    f"The encoder {encoder.spec['name']!r} returned shape {features.shape} for {len(flat)} crops, "
                    f"expected ({len(flat)}, {width})."
                )
                raise ValueError(msg)
            if not np.isfinite(features).all():
                msg = f"The encoder {encoder.spec['name']!r} returned values that are not finite."
                raise ValueError(msg)
            yield rows, np.asarray(features, dtype=np.float32).reshape(len(rows), n_fields * width)


def prefetched[T](items: Iterable[T], *, depth: int = 2) -> Generator[T]:
    """Make items on a thread, at most `depth` of them ahead of the consumer.

    Parameters
    ----------
    items
        The items.
    depth
        Items that may wait.

    Yields
    ------
    The items in their order. An exception on the thread is raised here. The thread stops when the iterator is closed.
    """
    queue: Queue[tuple[str, T | BaseException | None]] = Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                queue.put((kind, item), timeout=POLL_S)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again for the consumer
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=work, name="stcontrast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise item  # type: ignore[misc]
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()
