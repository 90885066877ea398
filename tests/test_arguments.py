"""Arguments are checked where they enter: every public function, every method's options, by the name of the argument."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from inspect import Parameter, isfunction, signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast import methods
from stcontrast._arguments import RULES, check_arguments, checked, listed, number, one_of, whole
from stcontrast.methods._base import METHODS, get_method

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{room.__name__.rpartition('.')[2]}.{name}": getattr(room, name)
    for room, names in (
        (stc.pp, ("complete", "crops", "image_features", "tissue_grid")),
        (stc.tl, stc.tl.__all__),
        (stc.pl, stc.pl.__all__),
    )
    for name in names
    if isfunction(getattr(room, name))
}
# what other places know better: objects, names of elements, encoders, slots, spots, a mapping by slide
ELSEWHERE = {
    "data", "sdata", "model", "encoder", "weights", "stain", "image_key", "shapes_key", "use_rep", "gene_sets", "spots",
    "image_tower", "geometry", "tissue", "coordinate_system", "slides", "pred",
    "palette", "training",
}  # fmt: skip
# a right value, where an argument has no default
RIGHT: dict[str, Any] = {
    "path": "a.geojson", "gene_sets": {"one": ["A"]}, "cv": SimpleNamespace(scores_of=None),
    "found": pd.DataFrame(), "gene": "A",
}  # fmt: skip
WRONG: dict[str, list[Any]] = {
    "a mapping from names of sets": [3, [], {}],
    "the name of": [2.5, [3.5]],
    "one or more of": ["zz", [], 3],
    "a number, ": ["zz", {}],
    "a table": [3, "a"],
    "True, False or the name": [3, []],
    "an Axes": [3, "a", [], [3]],
    "what `stc.tl.cross_validate`": [3, "cv", None],
    "a colour map": [3, "", []],
    "a title": [3, {"a": 1}, [1]],
    "a whole number": [-5, 0.5, "3", None, True, float("nan"), [2]],
    "a finite number": [-1.0, float("nan"), float("inf"), "1", None, True],
    "a name": ["", 3, ["a"]],
    "a list of names": ["ERBB2", [], [1], 3],
    "one or more names": [3, [3], None],
    "True or False": [1, "yes", None],
    "a mapping": [3, ["a"], "a"],
    "a path": [3, ["a"], ""],
    "one or several": [0, -1, [], [100, 0], "wide", [float("nan")], True],
    "a positive number, or": [0, -1, "1", {"slide": -1}, {"slide": None}],
    "one of": ["zz", 3, True],
}


def wrong_for(what: str) -> list[Any]:
    return next(values for start, values in WRONG.items() if what.startswith(start))


def rules_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Rules of the function's own, that its decorator holds."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return {**RULES, **cells["rules"].cell_contents}


def with_a_rule() -> list[Any]:
    return [
        pytest.param(name, parameter, id=f"{name}-{parameter}")
        for name, function in FUNCTIONS.items()
        for parameter in signature(function).parameters
        if parameter in rules_of(function)
    ]


@pytest.mark.parametrize(("function", "argument"), with_a_rule())
def test_a_bad_argument_is_named_before_anything_is_looked_at(function: str, argument: str) -> None:
    call, rules = FUNCTIONS[function], rules_of(FUNCTIONS[function])
    parameters = signature(call).parameters
    # neither data nor a model are looked at: there are none
    given: dict[str, Any] = {
        name: RIGHT.get(name, 64) if name in rules else None
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and name != argument
    }
    for value in wrong_for(rules[argument].what):
        if value is None and parameters[argument].default is None:
            continue
        with pytest.raises(ValueError, match=rf"^`{argument}` must be .*, found {re.escape(repr(value))}"):
            call(**given, **{argument: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_has_a_rule_or_is_checked_elsewhere(name: str) -> None:
    rules = rules_of(FUNCTIONS[name])
    assert {parameter for parameter in signature(FUNCTIONS[name]).parameters if parameter not in rules} <= ELSEWHERE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_keep_their_rules(name: str) -> None:
    rules = rules_of(FUNCTIONS[name])
    for parameter in signature(FUNCTIONS[name]).parameters.values():
        if parameter.name in rules and parameter.default not in (None, Parameter.empty):
            assert rules[parameter.name].holds(parameter.default), parameter


def options_of(name: str) -> dict[str, Any]:
    method = METHODS[name]
    options_type = getattr(method, "options_type", None)
    if options_type is not None:
        return {item.name: item.default for item in fields(options_type) if item.default is not MISSING}
    return {key: p.default for key, p in signature(method.__init__).parameters.items() if key not in ("self", "seed")}


@pytest.mark.parametrize(
    "method", [name for name in sorted(METHODS) if METHODS[name].__module__.startswith("stcontrast.")]
)
def test_bad_options_of_a_method_are_named(method: str) -> None:
    for option, default in options_of(method).items():
        wrong: list[Any] = ["zz", [1]] if isinstance(default, str) else [-1, "zz", float("nan"), [1]]
        for value in ["zz", 2] if isinstance(default, bool) else wrong:
            # what is no word may be a trained model
            with pytest.raises((ValueError, TypeError) if option == "gene_space" else ValueError, match=option):
                get_method(method, options={option: value})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_options_of_a_method_make_it_again(method: str) -> None:
    made = get_method(method)
    assert get_method(method, options={k: v for k, v in made.spec.items() if k != "seed"}).spec == made.spec


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"layer_decay": 2}, "layer_decay"),
        ({"warmup": 1}, "warmup"),
        ({"class_weight": float("nan")}, "class_weight"),
        ({"stop": "now"}, "stop"),
        ({"batch_norm": None}, "batch_norm"),
        ({"augment": "yes"}, "augment"),
        ({"num_workers": -1}, "num_workers"),
    ],
    ids=lambda value: str(value),
)
def test_bad_options_of_a_tower(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"`{told}` must be"):
        stc.models.TowerOptions(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_latent": 0},
        {"n_hidden": -1},
        {"n_layers": 0},
        {"seed": -1},
        {"gene_likelihood": "zz"},
        {"dropout_rate": 1.5},
    ],
    ids=str,
)
def test_bad_arguments_of_the_autoencoder(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        stc.models.BatchAgnosticVAE(None, **arguments)


@pytest.mark.parametrize("argument", ["max_epochs", "batch_size", "learning_rate", "seed"])
@pytest.mark.parametrize("value", [-1, "3", float("nan")])
def test_bad_arguments_of_its_training(argument: str, value: Any) -> None:
    import anndata as ad

    adata = ad.AnnData(np.ones((6, 3), dtype=np.float32))
    stc.models.BatchAgnosticVAE.setup_anndata(adata)
    model = stc.models.BatchAgnosticVAE(adata, n_latent=2)
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        model.train(**{argument: value})


@pytest.mark.parametrize("model", [None, 3, {}, ["model"]], ids=str)
@pytest.mark.parametrize("function", ["tl.classify", "tl.embed", "tl.find_similar", "tl.predict_expression"])
def test_something_else_than_a_model(function: str, model: Any) -> None:
    with pytest.raises(TypeError, match=r"`model` must be what `stc.tl.fit` returned, or the folder"):
        FUNCTIONS[function](None, model)


@pytest.mark.parametrize(
    "use", ["load", "predict_expression", "embed_genes", "save", "store", "directory", "checkpoint_dir"]
)
def test_a_file_where_a_folder_is_wanted(use: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    sdata = stc.datasets.toy(n_donors=2, n_spots=12, n_genes=12)
    model = stc.tl.fit(sdata, batch_key="donor", method="mean", encoder="color", field_um=50)
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: stc.models.load(file),
        "predict_expression": lambda: stc.tl.predict_expression(sdata, file),
        "embed_genes": lambda: stc.tl.embed_genes(sdata, model=file),
        "save": lambda: model.save(file, overwrite=True),
        "store": lambda: stc.tl.predict_expression(sdata, model, store=file / "pred.zarr"),
        "directory": lambda: stc.tl.cross_validate(sdata, donor_key="donor", directory=file),
        "checkpoint_dir": lambda: stc.models.TowerOptions(checkpoint_dir=file),
    }
    with pytest.raises((NotADirectoryError, FileExistsError, ValueError), match=r"notes.txt.* is a file"):
        calls[use]()
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (whole(0, 3), [0, 3, np.int8(2), np.uint64(1)], [-1, 4, 2.0, True, np.nan, "2"]),
        (number(above=0, most=1), [0.5, 1, np.float32(0.1)], [0, 1.1, np.inf, True, None]),
        (number(least=0, below=1), [0, 0.5], [1, -1e-9]),
        (one_of("a", "b"), ["a"], ["A", None, 1]),
        (one_of(1, None), [1, None], [True, 1.0, "1"]),
        (listed(whole(1), what="x", alone=True), [1, [1, 2], (3,), np.array([1, 2]), range(1, 3)], [0, [], [0], "1", {"a": 1}]),
        (listed(whole(1), what="x", mapped=True), [[1], {"a": 1}], [1, {"a": 0}]),
    ],
    ids=["whole", "above", "below", "choice", "types", "alone", "mapped"],
)  # fmt: skip
def test_rules(rule: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not rule.holds(value)] == []
    assert [value for value in bad if rule.holds(value)] == []


def test_none_is_allowed_where_it_is_the_default_and_positions_count() -> None:
    @checked(kind=one_of("a"))
    def function(seed: int, *, n_genes: int | None = None, kind: str = "a") -> tuple[int, int | None, str]:
        """What it does."""
        return seed, n_genes, kind

    assert function(1) == (1, None, "a")
    assert (function.__name__, function.__doc__) == ("function", "What it does.")
    assert list(signature(function).parameters) == ["seed", "n_genes", "kind"]
    for arguments in ((-1,), (None,)):
        with pytest.raises(ValueError, match="`seed` must be a whole number from 0 to 4294967295, found"):
            function(*arguments)
    with pytest.raises(ValueError, match="`kind` must be one of 'a', found 'b'"):
        function(1, kind="b")
    check_arguments({"unknown": object()})


def test_a_method_of_the_user_s_own_is_left_alone() -> None:
    assert methods.Method.option_names() == set()
