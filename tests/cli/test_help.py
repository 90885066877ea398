"""Every example of the help, and every rule of the Snakefile in the guide, does what it says."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData
from typer.testing import CliRunner

import stcontrast as stc
from stcontrast.cli import app
from tests.slide_files import halved, write_slide

runner = CliRunner()
SNAKEFILE = Path(__file__).parents[2] / "docs" / "user_guide" / "Snakefile"
COMMANDS = [str(command.name or command.callback.__name__) for command in app.registered_commands]  # type: ignore[union-attr]


def examples(command: str) -> list[str]:
    """Lines of the help that begin with the name of the program."""
    # this also runs when tests are collected
    logger = logging.getLogger("stcontrast")
    level = logger.level
    result = runner.invoke(app, [command, "--help"])
    logger.setLevel(level)
    assert result.exit_code == 0
    _, _, after = result.output.partition("Example")
    return [line.strip() for line in after.splitlines() if line.strip().startswith("stcontrast ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    train = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    stc.pp.image_features(train, encoder="color", field_um=100)
    train.write(folder / "train.zarr")
    new = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=30, seed=5)
    new.write(folder / "new.zarr")
    SpatialData(images={"he": new["donor1_a_he"]}).write(folder / "images.zarr")
    picture = np.moveaxis(new["donor1_a_he"]["scale0"]["image"].to_numpy(), 0, -1)
    write_slide(folder / "slide.tiff", [picture, halved(picture)], um_per_px=1.0)
    model = stc.tl.fit(train, donor_key="donor", label_key="subtype", options={"max_epochs": 5})
    model.save(folder / "model_dir")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command):
    assert examples(command)


@pytest.mark.parametrize(
    ("command", "example"),
    [
        pytest.param(command, example, id=f"{command} {i}", marks=[pytest.mark.long] if command == "demo" else [])
        for command in COMMANDS
        for i, example in enumerate(examples(command))
    ],
)
def test_every_example_runs(command, example, folder, monkeypatch):
    if "slide.tiff" in example:
        pytest.importorskip("wsidata")
    monkeypatch.chdir(folder)
    arguments = shlex.split(example)[1:]
    made = [
        arguments[i + 1]
        for i, name in enumerate(arguments)
        if name in ("--out", "--model", "--report") and command != "info"
    ]
    if command == "fit":
        arguments.append("--overwrite")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert all((folder / name).exists() for name in made)
    assert command == "info" or "Next: " in result.output


def test_the_order_in_the_help_of_the_program_names_commands():
    output = runner.invoke(app, ["--help"]).output
    named = re.findall(r"^ +stcontrast (\w+) ", output, re.MULTILINE)
    assert named == ["evaluate", "fit", "predict"]
    assert set(COMMANDS) == {
        "demo", "features", "grid", "fit", "predict", "classify", "evaluate", "similar", "report", "info",
    }  # fmt: skip


def rules() -> dict[str, str]:
    """Shell command of every rule of the Snakefile, in order, with its files filled in."""
    found = {}
    for name, body in re.findall(r"^rule (\w+):\n((?:[ ].*\n|\n)+)", SNAKEFILE.read_text() + "\n", re.MULTILINE):
        parts = dict(re.findall(r"^    (\w+):\n        (.+)$", body, re.MULTILINE))
        if "shell" not in parts:
            continue
        command = eval(parts["shell"])
        for kind in ("input", "output"):
            files = re.findall(r"(?:(\w+)=)?(?:directory\()?\"([^\"]+)\"", parts.get(kind, ""))
            for key, file in files:
                command = command.replace(f"{{{kind}.{key}}}" if key else f"{{{kind}}}", file)
        found[name] = command
    return found


@pytest.mark.slow
def test_the_snakefile_of_the_guide_runs_in_order(tmp_path, monkeypatch):
    """Without Snakemake: its rules stand in the order in which it would run them."""
    assert list(rules()) == ["slides", "features", "evaluate", "fit", "predict", "similar"]
    monkeypatch.chdir(tmp_path)
    for name, command in rules().items():
        assert "{" not in command, name
        first, *rest = shlex.split(command)
        if first == "python":
            subprocess.run([sys.executable, *rest], check=True, timeout=300)
            continue
        result = runner.invoke(app, rest)
        assert result.exit_code == 0, (name, result.output)
        # nothing on the error stream but warnings of the package itself
        lines = result.stderr.splitlines()
        assert all(re.match(r"\d\d:\d\d:\d\d WARNING ", line) for line in lines), result.stderr
    assert {"ridge", "mean"} <= set(pd.read_csv(tmp_path / "scores.csv")["method"])
    assert (tmp_path / "result.zarr").is_dir()
    assert (tmp_path / "result_expression.png").exists()
    assert len(pd.read_csv(tmp_path / "matches.csv")) == 40 * 5


def test_the_snakefile_of_the_guide_names_options_that_exist():
    for name, command in rules().items():
        words = shlex.split(command)
        if words[0] == "stcontrast":
            known = runner.invoke(app, [words[1], "--help"]).output
            assert all(word in known for word in words if word.startswith("--")), name
