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
    assert "color" not in result.output
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
    assert "--overwrite" in result.output
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert before == ["model"]


@pytest.fixture(scope="module")
def ridge(stores):
    """A saved model."""
    train = spatialdata.read_zarr(stores / "train.zarr")
    model = stc.tl.fit(train, donor_key="donor", label_key="subtype", method="ridge", encoder="color", field_um=100)
    model.save(stores / "ridge")
    return stores / "ridge"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["features", "grid", "fit", "predict", "classify", "evaluate", "similar"])
def test_overwrite_means_the_same_everywhere(command, stores, ridge, tmp_path):
    new, model = stores / "new.zarr", ["--model", ridge]
    if command == "grid":
        image = spatialdata.read_zarr(new)["donor1_a_he"]
        new = tmp_path / "images.zarr"
        spatialdata.SpatialData(images={"he": image}).write(new)
    # `similar` needs a joint embedding
    if command == "similar":
        train = spatialdata.read_zarr(stores / "train.zarr")
        stc.tl.fit(train, donor_key="donor", options={"max_epochs": 2}, encoder="color", field_um=100).save(
            tmp_path / "joint"
        )
        model = ["--model", tmp_path / "joint"]
    out = tmp_path / ("out.csv" if command in ("evaluate", "similar") else "out.zarr")
    arguments = {
        "features": ["features", new, "--out", out, "--encoder", "color", "--field-um", 100],
        "grid": ["grid", new, "--out", out, "--um-per-px", 1],
        "fit": ["fit", stores / "train.zarr", "--model", out, "--method", "mean", "--encoder", "color"],
        "predict": ["predict", new, *model, "--out", out, "--no-figure"],
        "classify": ["classify", new, *model, "--out", out],
        "evaluate": ["evaluate", stores / "train.zarr", "--methods", "mean", "--out", out],
        "similar": ["similar", new, *model, "--out", out, "--k", 2],
    }[command]
    assert run(*arguments).exit_code == 0
    first = out.stat().st_mtime_ns
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output
    assert out.stat().st_mtime_ns == first
    again = run(*arguments, "--overwrite")
    assert again.exit_code == 0, again.output
    assert out.stat().st_mtime_ns != first


def test_a_result_is_not_written_over_its_input(stores, ridge):
    for arguments in (
        ("predict", stores / "new.zarr", "--model", ridge),
        ("classify", stores / "new.zarr", "--model", ridge),
        ("features", stores / "new.zarr"),
    ):
        result = run(*arguments, "--out", stores / "new.zarr", "--overwrite")
        assert result.exit_code == 1
        assert "is an input" in result.output


def test_h5ad_in_and_out(stores, tmp_path, ridge):
    import anndata

    sdata = spatialdata.read_zarr(stores / "train.zarr")
    stc.pp.image_features(sdata, encoder="color", field_um=100)
    table = sdata["table"]
    del table.uns["spatialdata_attrs"]
    table.obsm["mine"] = table.obsm["X_image"]
    table.write_h5ad(tmp_path / "train.h5ad")
    model, out = tmp_path / "model", tmp_path / "out.h5ad"
    fitted = run(
        "fit", tmp_path / "train.h5ad", "--model", model, "--use-rep", "mine", "--label-key", "subtype",
        "--library-key", "region", "--method", "ridge", "--n-genes", 10,
    )  # fmt: skip
    assert fitted.exit_code == 0, fitted.output
    done = run("predict", tmp_path / "train.h5ad", "--model", model, "--out", out, "--library-key", "region")
    assert done.exit_code == 0, done.output
    found = anndata.read_h5ad(out)
    assert found.shape == (80, 10)
    assert found.obs["stc_class"].notna().all()
    wrong = run("predict", tmp_path / "train.h5ad", "--model", model, "--out", tmp_path / "out.zarr")
    assert wrong.exit_code == 1
    assert "result in .h5ad" in wrong.output


def test_several_stores_go_into_a_folder(stores, ridge, tmp_path):
    out = tmp_path / "results"
    slides = [stores / "new.zarr", stores / "train.zarr"]
    done = run("predict", *slides, "--model", ridge, "--out", out, "--no-figure")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["new.zarr", "train.zarr"]
    assert "folder" in run("predict", *slides, "--model", ridge, "--out", tmp_path / "a.zarr").output


def test_options_reach_the_method(stores, tmp_path):
    train = stores / "train.zarr"
    fit = ("fit", train, "--model", tmp_path / "model", "--encoder", "color", "--field-um", 100, "--method", "mlp")
    wrong = run(*fit, "--option", "depth=3")
    assert wrong.exit_code == 1
    assert "Unknown options ['depth']" in wrong.output
    assert run(*fit, "--option", "depth").exit_code == 1
    genes = tmp_path / "genes.txt"
    genes.write_text("GENE1\nGENE2\n")
    right = run(*fit[:-1], "knn", "--option", '{"k": 3}', "--genes", genes, "--donor-key", "donor", "--seed", 4)
    assert right.exit_code == 0, right.output
    spec = stc.models.load(tmp_path / "model").spec
    assert (spec["genes"], spec["seed"], spec["method"]) == (["GENE1", "GENE2"], 4, "knn")
    both = run(*fit[:-1], "mean", "--genes", genes, "--n-genes", 5, "--donor-key", "donor", "--overwrite")
    assert both.exit_code == 0, both.output
    assert {"GENE1", "GENE2"} < set(stc.models.load(tmp_path / "model").genes)


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbose_may_stand_anywhere(place, stores, caplog):
    words = ["-v", "info", stores / "new.zarr"] if place == "before" else ["info", stores / "new.zarr", "-v"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert logging.getLogger("stcontrast").level == logging.INFO


def test_info_of_models_and_stores(stores, ridge):
    of_model, of_store = run("info", ridge).output, run("info", stores / "new.zarr").output
    assert "method ridge" in of_model
    assert "30: GENE1" in of_model
    assert "40 in 1 slides" in of_store
    assert "1 µm per pixel" in of_store


def test_version():
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"stcontrast {stc.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [("fit",), ("fit", "a.zarr"), ("predict", "a.zarr", "--nonsense"), ("nothing",), ("info", "a", "b")]
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_an_interrupted_command_is_exit_code_130(stores, tmp_path, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stc.tl, "fit", interrupted)
    result = run("fit", stores / "train.zarr", "--model", tmp_path / "m")
    assert result.exit_code == 130
    assert result.output.strip() == "Interrupted."


def test_a_slide_file_is_predicted_in_one_command(stores, ridge, tmp_path):
    import numpy as np

    from tests.slide_files import halved, write_slide

    pytest.importorskip("wsidata")
    image = spatialdata.read_zarr(stores / "new.zarr")["donor1_a_he"]
    picture = np.moveaxis(image["scale0"]["image"].to_numpy(), 0, -1)
    slide = write_slide(tmp_path / "slide.tif", [picture, halved(picture)], um_per_px=1.0)
    result = run("predict", slide, "--model", ridge, "--out", tmp_path / "result.zarr")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["result.zarr", "result_classes.png", "result_expression.png", "slide.tif"]
    mixed = run("predict", slide, stores / "new.zarr", "--model", ridge, "--out", tmp_path / "more.zarr")
    assert "two calls" in mixed.output


@pytest.mark.parametrize(
    "option",
    [("--donor-key", "donor"), ("--table-key", "table"), ("--image-key", "he"), ("--library-key", "library_id")],
    ids=lambda option: option[0],
)
def test_options_of_tables_are_refused_for_slide_files(option, ridge, tmp_path):
    slide = tmp_path / "slide.tif"
    slide.write_bytes(b"II*")
    result = run("predict", slide, "--model", ridge, "--out", tmp_path / "result.zarr", *option)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert f"Invalid value for {option[0]}: it has no effect here: slide files have no table" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slide.tif"]


@pytest.mark.parametrize(
    ("arguments", "option", "says"),
    [
        (["predict", "NEW", "--model", "MODEL", "--out", "OUT", "--pitch-um", "50"], "--pitch-um", "stores have spots"),
        (["predict", "NEW", "--model", "MODEL", "--out", "OUT", "--no-figure", "--gene", "GENE1"], "--gene", "no figure"),
        (["report", "MODEL", "--out", "OUT.html", "--table-key", "table"], "--table-key", "it is about the stores of --data"),
        (["report", "MODEL", "--out", "OUT.html", "--um-per-px", "1"], "--um-per-px", "it is about the stores of --data"),
        (["demo", "--out", "OUT", "--sections", "C2"], "--sections", "only `--data her2st`"),
    ],
    ids=["predict pitch", "predict gene", "report table", "report scale", "demo sections"],
)  # fmt: skip
def test_an_option_without_effect_is_wrong_usage(arguments, option, says, stores, ridge, tmp_path):
    places = {"NEW": stores / "new.zarr", "MODEL": ridge, "OUT": tmp_path / "out.zarr", "OUT.html": tmp_path / "r.html"}
    result = run(*(places.get(item, item) for item in arguments))
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert f"Invalid value for {option}: it has no effect here: {says}" in said
    assert not list(tmp_path.iterdir())


def test_a_gene_that_is_not_predicted_is_told_before_any_work(stores, ridge, tmp_path):
    result = run("predict", stores / "new.zarr", "--model", ridge, "--out", tmp_path / "o.zarr", "--gene", "GENE99")
    assert result.exit_code == 1
    assert "--gene: the model does not predict 'GENE99'; it has 30 genes" in result.output
    assert not list(tmp_path.iterdir())


def test_figures_are_drawn_of_the_table_that_is_named(stores, ridge, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(stc.pl, "spatial_pred", lambda *_, **given: drawn.append(given))
    monkeypatch.setattr(stc.pl, "spatial_class", lambda *_, **given: drawn.append(given))
    sdata = spatialdata.read_zarr(stores / "new.zarr")
    sdata["spots"], sdata["other"] = sdata["table"].copy(), sdata["table"].copy()
    del sdata.tables["table"]
    sdata.write(tmp_path / "two.zarr")
    out = tmp_path / "result.zarr"
    result = run("predict", tmp_path / "two.zarr", "--model", ridge, "--out", out, "--table-key", "spots")
    assert result.exit_code == 0, result.output
    assert [given["table_key"] for given in drawn] == ["spots", "spots"]


@pytest.fixture(scope="module")
def of_color(stores):
    """A model on colour statistics with a joint embedding."""
    sdata = spatialdata.read_zarr(stores / "train.zarr")
    options = {"max_epochs": 2}
    stc.tl.fit(sdata, batch_key="donor", label_key="subtype", encoder="color", options=options).save(stores / "color")
    return stores / "color"


@pytest.mark.parametrize("command", ["predict", "classify", "similar"])
def test_the_encoder_of_a_model_is_given_by_its_name(command, stores, of_color, tmp_path, monkeypatch):
    from stcontrast.tl._features import to_predict

    asked = []
    resolve = to_predict.resolve_encoders
    monkeypatch.setattr(to_predict, "resolve_encoders", lambda encoder: asked.append(encoder) or resolve(encoder))
    out = tmp_path / ("o.csv" if command == "similar" else "o.zarr")
    where = [stores / "new.zarr", "--model", of_color, "--out", out]
    result = run(command, *where, "--encoder", "color", *(["--no-figure"] if command == "predict" else []))
    assert result.exit_code == 0, result.output
    assert set(asked) == {"color"}
    wrong = run(command, *where, "--overwrite", "--encoder", "color", "--encoder", "texture")
    assert wrong.exit_code == 1
    assert "found 2 encoders" in wrong.output
