"""The page "Schedules": how long and how fast every published method is trained, there and here.

    python scripts/schedules_table.py          # print the page
    python scripts/schedules_table.py --write  # write docs/methods/schedules.md

What is done here is asked of the code: the method's own module says how many batches an epoch of so many spots has, and
its own optimiser how it is set. ``tests/methods/published/test_schedules.py`` fails where the committed page is not the
current one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stcontrast.methods._base import METHODS
from stcontrast.methods.published._trained import TrainedMethod
from stcontrast.nn import SpotTable

PAGE = Path(__file__).parents[1] / "docs/methods/schedules.md"
# other data sets to say the steps for: spots and slides
SIZES = {"4 slides of 183 spots (her2st C2–C5)": (732, 4), "4 slides of 4 000 spots": (16000, 4)}
FEW = 4
# epochs after which no rate changes
LONG = 10**6
# options that come with a schedule of their own
OTHER_OPTIONS: dict[str, list[dict[str, Any]]] = {"nh2st": [{"variant": "code"}]}
HEAD = """# Schedules

How long and how fast every published method is trained: where it was published, and here with the default options. The
page is made of the code (`scripts/schedules_table.py`): the batches of an epoch are those that the method's module makes,
the rates those of its optimiser.

A schedule is a number of passes through the spots (`max_epochs`) and a batch size (`batch_size`), as published. So the
steps of the optimiser grow with the data as they do in the original, and at the size of the published data they are the
published number. An epoch leaves out an incomplete batch, as published, only if that is at most a tenth of the spots;
otherwise all spots are split into batches of equal size. mclSTExp takes spots of one slide a step. `max_steps` sets the
number of steps instead, whatever the size of the data.

The trainings on this page are those of the heads, on frozen features. With
[`image_tower="finetune"`](../user_guide/fine_tuning.md#how-it-is-trained) the encoder is trained before that:
`tower_options` say for how many `epochs` (10), at which rates, and with which `batch_size` (256), whatever the method. With
`{"loss": "method"}` among them the loss and the batches are those of bleep, mclstexp or tpirbae.
"""


class Steps(NamedTuple):
    """A training on so many spots, as the code makes it."""

    epoch: int
    all: int
    batch: str


def trained_methods() -> dict[str, TrainedMethod]:
    """Methods whose networks are trained by steps, with their default options, and those with a schedule of their own."""
    kinds = [METHODS[name] for name in sorted(METHODS)]
    return {
        ", ".join([kind.name, *(f'`{key}="{value}"`' for key, value in options.items())]): kind(**options)
        for kind in kinds
        if issubclass(kind, TrainedMethod)
        for options in ({}, *OTHER_OPTIONS.get(kind.name, ()))
    }


def steps(method: TrainedMethod, n_spots: int, n_slides: int) -> Steps:
    """Steps of a method: those that its module makes."""
    module = method.build(n_image=FEW, n_gene=FEW, n_targets=FEW)
    slide = np.sort(np.arange(n_spots) % n_slides)
    nowhere = np.zeros((n_spots, FEW), dtype=np.float32)
    xy = np.stack([np.arange(n_spots), slide], axis=1).astype(np.float64)
    sizes = [len(part) for part in module.batches(SpotTable.of(nowhere, slide, xy), method.options.batch_size)]
    few, many = min(sizes), max(sizes)
    return Steps(len(sizes), len(sizes) * method.options.max_epochs, str(few) if few == many else f"{few}–{many}")


def optimiser(method: TrainedMethod) -> tuple[str, float, float, str]:
    """Name, rate, weight decay and schedule of the rate of a method's optimiser."""
    made, schedule = method.optimizer(method.build(n_image=FEW, n_gene=FEW, n_targets=FEW))
    group = made.param_groups[0]
    return type(made).__name__, group["lr"], group["weight_decay"], _falls(schedule)


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for title, method in trained_methods().items():
        there, (name, rate, decay, falls) = method.published, optimiser(method)
        options = method.options
        parts.append(f"\n## {title}\n\n{method.reference}.\n\n")
        parts.append("| | published | here |\n| --- | --- | --- |\n")
        n_spots, n_slides = (there.n_spots, there.n_slides) if there else next(iter(SIZES.values()))
        here = steps(method, n_spots, n_slides)
        size = f"{n_spots} spots" if there else next(iter(SIZES))
        rows = [
            ("data", there and there.data, "yours"),
            ("batch", there and there.batch_size, f"{options.batch_size}; {here.batch} at {size}"),
            ("epochs", there and there.max_epochs, options.max_epochs),
            (f"steps an epoch at {size}", there and there.n_spots // there.batch_size, here.epoch),
            (f"steps at {size}", there and there.n_steps, here.all),
            ("optimiser", there and there.optimizer, name),
            ("learning rate", there and f"{there.learning_rate:g}", f"{rate:g}{falls}"),
            ("weight decay", there and there.weight_decay, f"{decay:g}"),
            ("ends with", there and there.end, "the last epoch"),
        ]
        for label, published, ours in rows:
            parts.append(f"| {label} | {'not known' if published is None else published} | {ours} |\n")
        others = [f"{label}: {steps(method, *size).all}" for label, size in SIZES.items()]
        parts.append(f"\nSteps here at other sizes: {'; '.join(others)}.\n")
    return "".join(parts)


def _falls(schedule: Any) -> str:
    if schedule is None:
        return ""
    step, factor = getattr(schedule, "step_size", None), getattr(schedule, "gamma", None)
    if step and factor:
        return f", × {factor:g} every {step} epochs"
    return f", falling to {schedule.base_lrs[0] * schedule.lr_lambdas[0](LONG):g}"


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
