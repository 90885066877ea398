"""Nuclei and glands of the H&E-like picture: small shapes stamped onto the dye planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stcontrast.datasets._toy_layout import SUBTYPES, smooth_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stcontrast.datasets._toy_layout import Layout

__all__ = ["draw_glands", "draw_nuclei", "jittered_grid", "value_at"]

_TUMOUR, _STROMA, _FAT, _GLANDS = range(len(SUBTYPES))
_STAMP_PX: Final = 19
_N_ANGLES: Final = 18
_GLAND_REACH_PX: Final = 50
_WOBBLE: Final = np.array([0.10, 0.06, 0.03, 0.10, 0.06, 0.03])


def jittered_grid(shape: tuple[int, int], pitch: float, jitter: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points about `pitch` pixels apart, each moved by up to `jitter` pitches; (n_points, 2), x and y."""
    n_rows, n_columns = int(shape[0] / pitch) + 1, int(shape[1] / pitch) + 1
    rows, columns = np.indices((n_rows, n_columns)).reshape(2, -1)
    points = np.stack([columns + 0.5 * (rows % 2), rows], axis=1) + 0.5
    points = (points + rng.uniform(-jitter, jitter, points.shape)) * pitch
    return points[(points >= 0).all(axis=1) & (points < [shape[1], shape[0]]).all(axis=1)]


def value_at(plane: NDArray, points: NDArray[np.float64]) -> NDArray:
    """Value of the pixel that each point (x, y) lies in."""
    return plane[points[:, 1].astype(int), points[:, 0].astype(int)]


def draw_nuclei(
    layout: Layout,
    *,
    nests: NDArray[np.bool_],
    matrix: NDArray[np.bool_],
    across: NDArray[np.float32],
    nuclei: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Add nuclei to a haematoxylin plane: large ones in tumour nests, spindles and lymphocytes between the fibres.

    Their density follows `layout.cellularity` in every kind of tissue; spindles lie along the lines of equal `across`.
    """
    shape = (nuclei.shape[0], nuclei.shape[1])

    points = jittered_grid(shape, 12.5, 0.33, rng)
    points = points[value_at(nests, points)]
    points = points[rng.random(len(points)) < 0.30 + 0.68 * value_at(layout.cellularity, points)]
    size = rng.uniform(4.0, 6.2, 48)
    bank = [_nucleus(r, r * rng.uniform(0.68, 1.0), rng.uniform(0, np.pi), rng.uniform(0.42, 0.72), rng) for r in size]
    _stamp(nuclei, points, bank, rng.integers(len(bank), size=len(points)))

    points = jittered_grid(shape, 17.0, 0.45, rng)
    points = points[value_at(matrix, points)]
    points = points[rng.random(len(points)) < 0.10 + 0.30 * value_at(layout.cellularity, points)]
    bank = [
        _nucleus(rng.uniform(5.0, 7.5), rng.uniform(1.3, 2.0), np.pi * k / _N_ANGLES, rng.uniform(0.45, 0.65), rng)
        for k in range(_N_ANGLES)
    ]
    points = points[(points < np.array(shape[::-1]) - 4).all(axis=1)]
    here = value_at(across, points)
    slope = [value_at(across, points + step) - here for step in ([4, 0], [0, 4])]
    angle = np.arctan2(slope[1], slope[0]) + np.pi / 2 + rng.normal(0, 0.15, len(points))
    _stamp(nuclei, points, bank, _nearest_angle(angle))

    points = jittered_grid(shape, 8.0, 0.4, rng)
    points = points[value_at(matrix, points)]
    points = points[rng.random(len(points)) < 0.42 * value_at(layout.cellularity, points) ** 3]
    bank = [_nucleus(r, r, 0.0, rng.uniform(0.75, 0.95), rng) for r in rng.uniform(2.2, 3.1, 12)]
    _stamp(nuclei, points, bank, rng.integers(len(bank), size=len(points)))


def draw_glands(
    layout: Layout,
    *,
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    nuclei: NDArray[np.float32],
    mottle: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draw rings of epithelium around pale lumens onto the dye planes; return the mask of what they cover."""
    shape = (nuclei.shape[0], nuclei.shape[1])
    covered = np.zeros(shape, dtype=bool)
    centres = jittered_grid(shape, 78.0, 0.2, rng)
    inside = (centres >= _GLAND_REACH_PX).all(axis=1) & (centres < np.array(shape[::-1]) - _GLAND_REACH_PX).all(axis=1)
    centres = centres[inside]
    centres = centres[(value_at(layout.region, centres) == _GLANDS) & value_at(layout.tissue, centres)]

    dy, dx = (np.mgrid[-_GLAND_REACH_PX:_GLAND_REACH_PX, -_GLAND_REACH_PX:_GLAND_REACH_PX] + 0.5).astype(np.float32)
    waves, distance = _waves(np.arctan2(dy, dx)), np.hypot(dy, dx)
    points, angles = [np.zeros((0, 2))], [np.zeros(0)]
    for x, y in centres.astype(int).tolist():
        radius, lumen = rng.uniform(25, 38), rng.uniform(0.25, 0.53)
        wobble = (rng.normal(0, 1, 6) * _WOBBLE).astype(np.float32)
        depth = distance / (radius * np.exp(waves @ wobble))
        window = (slice(y - _GLAND_REACH_PX, y + _GLAND_REACH_PX), slice(x - _GLAND_REACH_PX, x + _GLAND_REACH_PX))
        blue, pink = haematoxylin[window], eosin[window]
        pink[depth < 1.1] = 0.48
        blue[depth < 1] = 0.13 + 0.02 * mottle[window][depth < 1]
        pink[depth < 1] = 0.27 + 0.03 * mottle[window][depth < 1]
        blue[depth < lumen] = 0.01
        pink[depth < lumen] = rng.uniform(0.01, 0.10)
        covered[window] |= depth < 1.1

        # One row of nuclei at the base of the cells, and a loose second one where nuclei are dense.
        for row, share in ((0.80, 0.95), (0.62, 0.9 * layout.cellularity[y, x])):
            angle = np.arange(0, 2 * np.pi, 8.0 / (row * radius))
            angle = (angle + rng.normal(0, 0.06, angle.size))[rng.random(angle.size) < share]
            around = row * radius * np.exp(_waves(angle) @ wobble)
            points.append(np.stack([x + around * np.cos(angle), y + around * np.sin(angle)], axis=1))
            angles.append(angle)
    bank = [
        _nucleus(rng.uniform(3.8, 5.2), rng.uniform(2.4, 3.2), np.pi * k / _N_ANGLES, rng.uniform(0.5, 0.8), rng)
        for k in range(_N_ANGLES)
    ]
    _stamp(nuclei, np.concatenate(points), bank, _nearest_angle(np.concatenate(angles)))
    return covered


def _waves(angle: NDArray) -> NDArray:
    """Cosines and sines of 2, 3 and 5 turns: what the outline of a gland is made of, (..., 6)."""
    turns = np.multiply.outer(angle, np.array([2, 3, 5], dtype=angle.dtype))
    return np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)


def _nearest_angle(angle: NDArray) -> NDArray[np.int64]:
    return np.round(angle / np.pi * _N_ANGLES).astype(np.int64) % _N_ANGLES


def _nucleus(long: float, short: float, angle: float, darkness: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Small square picture of one nucleus: an ellipse with a soft edge and mottled chromatin."""
    y, x = np.mgrid[:_STAMP_PX, :_STAMP_PX] - _STAMP_PX // 2
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    inside = np.clip((1.12 - np.hypot(along / long, across / short)) * short * 0.7, 0, 1)
    chromatin = 1 + 0.16 * smooth_noise(rng, (_STAMP_PX, _STAMP_PX), 1.8)
    return (darkness * inside * chromatin).clip(0).astype(np.float32)


def _stamp(
    plane: NDArray[np.float32], points: NDArray[np.float64], bank: list[NDArray[np.float32]], index: NDArray[np.int64]
) -> None:
    half = _STAMP_PX // 2
    corner = points.astype(int) - half
    fits = (corner >= 0).all(axis=1) & (corner + _STAMP_PX <= plane.shape[::-1]).all(axis=1)
    for (x, y), kind in zip(corner[fits].tolist(), index[fits].tolist(), strict=True):
        window = plane[y : y + _STAMP_PX, x : x + _STAMP_PX]
        np.maximum(window, bank[kind], out=window)
