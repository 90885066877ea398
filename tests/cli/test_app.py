from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import spatialdata
from typer.testing import CliRunner

import stcontrast as stc
from stcontrast.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def _log_level_of_the_session():
    """The command line sets the level of the package's log, which other tests look at."""
    logger = logging.getLogger("stcontrast")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two donors to train on and one that the model has not seen."""
    folder = tmp_path_factory.mktemp("stores")
    stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30).write(folder / "train.zarr")
    stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=5).write(folder / "new.zarr")
    return folder


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_fit_then_predict_writes_a_new_store(stores, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out.zarr"
    fitted = run("fit", stores / "train.zarr", "--model", model, "--label-key", "subtype", "--method", "ridge")
    assert fitted.exit_code == 0, fitted.output
    assert "held_out_r (held-out donors" in fitted.output
    predicted = run("predict", stores / "new.zarr", "--model", model, "--out", out)
    assert predicted.exit_code == 0, predicted.output
    sdata = spatialdata.read_zarr(out)
    assert sdata["stc_pred"].shape == (40, len(stc.models.load(model).genes))
    assert sdata["table"].obs["stc_class"].notna().all()
    assert "stc_pred" not in spatialdata.read_zarr(stores / "new.zarr").tables


def test_evaluate_prints_a_row_per_method_and_writes_every_score(stores, tmp_path):
    csv = tmp_path / "scores.csv"
    result = run("evaluate", stores / "train.zarr", "--label-key", "subtype", "--methods", "ridge, mean", "--out", csv)
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("ridge", "mean"))
    assert "stcontrast" not in result.output
    scores = pd.read_csv(csv)
    assert set(scores["donor"]) == {"donor1", "donor2"}
    assert {"pearson", "spearman", "rmse", "macro_f1", "calibration_error"} <= set(scores["metric"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "nowhere.zarr", "--model", "m"), "No store at 'nowhere.zarr'"),
        (("predict", "nowhere.zarr", "--model", "no-model", "--out", "o.zarr"), "No stcontrast model"),
        (("demo", "--data", "nowhere.zarr"), "No store at 'nowhere.zarr'"),
        (("fit", "empty", "--model", "m"), "'empty' is not a SpatialData store"),
        (("demo", "--data", "empty"), "'empty' is not a SpatialData store"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_1(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert says in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "on_purpose"),
    [
        ("raise KeyError('No column')", True),
        ("raise TypeError('Expected a SpatialData object')", True),
        ("return {}['x']", False),
        ("return [][0]", False),
        ("return pandas.DataFrame()['x']", False),
        ("return int('x')", False),
        ("return 'x'.absent", False),
    ],
)
def test_only_an_error_that_the_package_raises_on_purpose_is_one_line(body, on_purpose, stores, tmp_path, monkeypatch):
    made_up: dict[str, Any] = {"pandas": pd}
    exec(compile(f"def fit(*_, **__):\n    {body}", str(Path(stc.__file__).parent / "made_up.py"), "exec"), made_up)
    monkeypatch.setattr(stc.tl, "fit", made_up["fit"])
    result = run("fit", stores / "train.zarr", "--model", tmp_path / "m")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit) == on_purpose
    assert result.output.startswith("Error: ") == on_purpose
    if not on_purpose:
        assert "Please report it" in result.exception.__notes__[0]


def test_an_error_raised_outside_the_package_keeps_its_traceback(stores, tmp_path, monkeypatch):
    def fit(*_: Any, **__: Any) -> None:
        raise ValueError("x")

    monkeypatch.setattr(stc.tl, "fit", fit)
    result = run("fit", stores / "train.zarr", "--model", tmp_path / "m")
    assert isinstance(result.exception, ValueError)


def test_an_unknown_column_is_named_with_those_that_exist(stores, tmp_path):
    result = run("fit", stores / "train.zarr", "--model", tmp_path / "m", "--batch-key", "patient")
    assert result.exit_code == 1
    assert "'patient'" in result.output
    assert "donor" in result.output
    assert not (tmp_path / "m").exists()


def test_an_existing_model_is_not_replaced(stores, tmp_path):
    (tmp_path / "model").mkdir()
    result = run("fit", stores / "train.zarr", "--model", tmp_path / "model")
    assert result.exit_code == 1
    assert "exists" in result.output
