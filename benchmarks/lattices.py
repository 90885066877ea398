"""How often the scale of a slide is right, asked for or wrong, over random lattices of all kinds of platforms.

    python benchmarks/lattices.py [--n 10000] [--seed 0]

Random similarity transforms, extents, holes (10 to 60 %) and jitter; `tests/lattices.py` draws them. A scale that is more
than 2 % off is wrong; there must be none. Only Visium and legacy ST can be right: the others have to be asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.lattices import draw

from stcontrast._reading import scale_from_spots


def main() -> int:
    """Print a table; the number of wrong ones is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    seconds = 0.0
    for _ in range(given.n):
        spots = draw(rng)
        start = time.perf_counter()
        um_per_px = scale_from_spots(spots.centers, spots.width_px).um_per_px
        seconds += time.perf_counter() - start
        outcome = (
            "asked for" if um_per_px is None else "right" if abs(um_per_px / spots.um_per_px - 1) < 0.02 else "wrong"
        )
        found[spots.platform][outcome] += 1
        if outcome == "wrong":
            print(
                f"wrong: {spots.platform}, {len(spots.centers)} spots, {spots.holes:.0%} holes: {um_per_px} for {spots.um_per_px}"
            )
    total = sum(found.values(), Counter())
    print(f"{'platform':32}{'right':>8}{'asked for':>11}{'wrong':>7}")
    for platform, counted in [*sorted(found.items()), ("all", total)]:
        print(f"{platform:32}{counted['right']:>8}{counted['asked for']:>11}{counted['wrong']:>7}")
    print(f"{1000 * seconds / given.n:.1f} ms a lattice")
    return int(total["wrong"])


if __name__ == "__main__":
    sys.exit(main())
