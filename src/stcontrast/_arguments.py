"""What the arguments of public functions may be: one rule for a name, wherever it is an argument or an option."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import wraps
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FLAG",
    "NAME",
    "NAMES",
    "POSITIVE",
    "RULES",
    "SEED",
    "SHARE",
    "TEXT",
    "Rule",
    "check_arguments",
    "check_fields",
    "checked",
    "listed",
    "number",
    "one_of",
    "whole",
]


class Rule(NamedTuple):
    """What a value must be, in words, and whether it is."""

    what: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number from `least` to `most`."""
    what = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    return Rule(what, lambda value: _is(value, numbers.Integral) and least <= value and (most is None or value <= most))


def number(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Rule:
    """A finite number within bounds."""
    bounds = {"above": above, "of at least": least, "below": below, "of at most": most}
    what = "a finite number " + " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)

    def holds(value: Any) -> bool:
        return (
            _is(value, numbers.Real)
            and bool(np.isfinite(value))
            and (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        )

    return Rule(what, holds)


def one_of(*valid: object) -> Rule:
    """One of some values."""
    return Rule(
        f"one of {', '.join(map(repr, valid))}",
        lambda value: any(value is v or value == v for v in valid if type(value) is type(v)),
    )


def listed(rule: Rule, *, what: str, alone: bool = False, mapped: bool = False) -> Rule:
    """A list of values of which the rule holds; one of them `alone`, or a mapping to them, if that is allowed."""

    def holds(value: Any) -> bool:
        if alone and rule.holds(value):
            return True
        if isinstance(value, Mapping):
            return mapped and all(rule.holds(item) for item in value.values())
        several = isinstance(value, Sequence | np.ndarray) or hasattr(value, "__array__")
        return several and not isinstance(value, str) and len(value) > 0 and all(rule.holds(item) for item in value)

    return Rule(what, holds)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


FLAG: Final = Rule("True or False", lambda value: isinstance(value, bool | np.bool_))
TEXT: Final = Rule("a name", lambda value: isinstance(value, str))
NAME: Final = Rule("a name (text)", lambda value: isinstance(value, str) and bool(value))
SLOT: Final = Rule(
    "a name (text) without a slash, which no file could hold",
    lambda value: isinstance(value, str) and bool(value) and "/" not in value,
)
OPTIONS: Final = Rule("a mapping from names of options to values", lambda value: isinstance(value, Mapping))
PATH: Final = Rule(
    "a path (text or `pathlib.Path`)", lambda value: isinstance(value, str | PathLike) and bool(str(value))
)
POSITIVE: Final = number(above=0)
SHARE: Final = number(least=0, most=1)
NOT_NEGATIVE: Final = number(least=0)
SEED: Final = whole(0, 2**32 - 1)
NAMES: Final = listed(NAME, what="a list of names, not empty")
FIELDS: Final = listed(POSITIVE, what="one or several positive numbers (µm)", alone=True)
PER_SLIDE: Final = Rule(
    "a positive number, or a mapping from slide to number",
    lambda value: POSITIVE.holds(value) or (isinstance(value, Mapping) and all(map(POSITIVE.holds, value.values()))),
)

RULES: Final[dict[str, Rule]] = {
    # counts of things
    **dict.fromkeys(
        (
            "n_genes", "n_score_genes", "n_latent", "n_hidden", "n_layers", "n_heads", "n_per_head", "n_embedding",
            "n_coordinates", "n_components", "n_model", "k", "probe_k", "max_epochs", "vae_epochs", "epochs", "max_steps", "batch_size",
            "micro_batch", "size_px", "n_image", "n_gene", "n_jobs", "precompute", "max_spots",
        ),
        whole(1),
    ),
    **dict.fromkeys(("n_neighbors", "num_workers"), whole(0)),
    "n_folds": whole(2),
    "max_sequence": whole(2),
    "seed": SEED,
    # lengths and scales
    "field_um": FIELDS,
    "um_per_px": PER_SLIDE,
    **dict.fromkeys(("spot_diameter_um", "pitch_um", "length"), POSITIVE),
    "min_tissue": number(above=0, most=1),
    # of training
    **dict.fromkeys(("temperature", "target_temperature", "penalty"), POSITIVE),
    "learning_rate": NOT_NEGATIVE,
    **dict.fromkeys(
        (
            "weight_decay", "class_weight", "adversarial_weight", "contrastive_weight", "expression_weight", "query_weight",
            "neighbor_weight", "stain_jitter", "color_jitter", "class_penalty",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("dropout", "dropout_rate", "input_dropout"), number(least=0, below=1)),
    "warmup": number(least=0, below=1),
    "layer_decay": number(above=0, most=1),
    # names
    **dict.fromkeys(
        ("batch_key", "donor_key", "label_key", "layer", "table_key", "library_key", "validation_key", "tile_key", "method"),
        NAME,
    ),
    "key_added": SLOT,
    "genes": NAMES,
    "methods": Rule(
        "a list of names of methods, or a mapping from names to options, not empty",
        lambda value: all(map(OPTIONS.holds, value.values())) and NAMES.holds(list(value))
        if isinstance(value, Mapping)
        else NAMES.holds(value),
    ),
    "gene_sets": Rule(
        "one or more names, or a mapping from names to lists of genes",
        lambda value: isinstance(value, str | Mapping) or (isinstance(value, Sequence) and all(map(NAME.holds, value))),
    ),
    "options": OPTIONS,
    "tower_options": OPTIONS,
    **dict.fromkeys(("store", "directory", "path", "out"), PATH),
    "image_key": Rule(
        "a name (text), or a mapping from slide to name",
        lambda value: NAME.holds(value) or (isinstance(value, Mapping) and all(map(NAME.holds, value.values()))),
    ),
    # of pictures
    "cmap": Rule("a colour map: its name, or one of matplotlib", lambda value: NAME.holds(value) or callable(value)),
    "title": Rule(
        "a title (text), or a list of titles",
        lambda value: isinstance(value, str)
        or (isinstance(value, Sequence | np.ndarray) and all(isinstance(item, str) for item in value)),
    ),
    **dict.fromkeys(("class_key", "prediction_key", "reference", "metric", "gene_set"), NAME),
    "ax": Rule(
        "an Axes of matplotlib, or several",
        lambda value: np.size(value) > 0
        and all(hasattr(one, "set_title") and hasattr(one, "figure") for one in np.ravel(value)),
    ),
    "cv": Rule("what `stc.tl.cross_validate` returned", lambda value: hasattr(value, "scores_of")),
    # switches
    **dict.fromkeys(
        ("complete", "overwrite", "pretrained", "within_slide", "fill_missing", "normalize", "learn_temperature", "guided", "augment", "fast",
         "show", "return_fig"),
        FLAG,
    ),
}  # fmt: skip


def check_arguments(given: Mapping[str, Any], **rules: Rule) -> None:
    """Raise where an argument is not what its name stands for; names without a rule are not looked at.

    Parameters
    ----------
    given
        Arguments by name.
    **rules
        Rules that differ from those of `RULES` here.

    Raises
    ------
    ValueError
        If a rule does not hold; the message says what is wanted and what was found.
    """
    for name, value in given.items():
        rule = rules.get(name) or RULES.get(name)
        if rule is not None and not rule.holds(value):
            msg = f"`{name}` must be {rule.what}, found {value!r}."
            raise ValueError(msg)


def check_fields(options: Any, **rules: Rule) -> None:
    """:func:`check_arguments` for the fields of a dataclass of options; `None` is allowed where it is the default."""
    given = {item.name: getattr(options, item.name) for item in fields(options)}
    optional = {item.name for item in fields(options) if item.default is None}
    check_arguments({k: v for k, v in given.items() if not (v is None and k in optional)}, **rules)


def checked[**P, R](**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function check its arguments before anything else; `None` is allowed where it is the default.

    Parameters
    ----------
    **rules
        As in :func:`check_arguments`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = signature(function).parameters
        optional = {name for name, parameter in parameters.items() if parameter.default is None}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            check_arguments({k: v for k, v in given.items() if not (v is None and k in optional)}, **rules)
            return function(*args, **kwargs)

        return call

    return decorate
