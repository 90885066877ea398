"""Who is who: donors in several types, classes that are none, names of slides that files cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast._records import Record, read_record
from tests.reading.test_columns import AS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DONORS: list[Any] = [
    pytest.param(lambda i: i, lambda i: float(i), id="int and float"),
    pytest.param(lambda i: i, lambda i: str(i), id="int and text"),
    pytest.param(lambda i: f"{i}.0", lambda i: i, id="text of a float and int"),
    pytest.param(lambda i: np.float32(i), lambda i: np.uint8(i), id="float32 and uint8"),
]


def section(name: str, *, seed: int = 0, n: int = 40, **obs: Any) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    columns = pd.DataFrame({"library_id": name, **obs}, index=[f"{name}-{i}" for i in range(n)])
    made = ad.AnnData(rng.poisson(3.0, (n, 6)).astype(np.float32), obs=columns)
    made.obsm = {"spatial": rng.uniform(0, 999, (n, 2)), "X_own": rng.normal(size=(n, 5)).astype(np.float32)}
    return made


def learn(objects: Any, **arguments: Any) -> stc.models.Predictor:
    return stc.tl.fit(objects, method="mean", use_rep="X_own", **arguments)


@pytest.mark.situation("Donors, slides, labels", "A donor is a number in one object and text in another", "works")
@pytest.mark.parametrize(("one", "other"), DONORS)
def test_a_donor_in_two_types_is_one_donor(one: Callable[[int], Any], other: Callable[[int], Any]) -> None:
    objects = [section(f"s{i}", seed=i, donor=(one if i % 2 else other)(1 + i // 2)) for i in range(4)]
    found = stc.tl.cross_validate(objects, donor_key="donor", methods=["mean"], use_rep="X_own")
    assert sorted(found.scores["donor"].unique()) == ["1", "2"]
    model = learn(objects, batch_key="donor")
    assert model.spec["donors"] == ["1", "2"]
    new = section("new", seed=9, donor=one(2))
    predicted = stc.tl.predict_expression(new, model, donor_key="donor")
    assert isinstance(predicted, ad.AnnData)
    assert predicted.uns["stcontrast"]["prediction"]["provenance"] == {"new": "in-donor"}


@pytest.mark.parametrize("kind", AS)
def test_donors_of_any_type(kind: str) -> None:
    objects = [section(f"s{i}", seed=i, donor=AS[kind]([1 + i] * 40)) for i in range(2)]
    assert learn(objects, batch_key="donor").spec["donors"] == ["1", "2"]


@pytest.mark.situation(
    "Donors, slides, labels",
    "Names of donors differ only in case, spaces or leading zeros",
    "warning",
    "differ only in how they are written",
)
def test_donors_that_look_alike_are_named(caplog: pytest.LogCaptureFixture) -> None:
    learn(
        [section("s0", donor="P01"), section("s1", seed=1, donor="p1 "), section("s2", seed=2, donor="P2")],
        donor_key="donor",
    )
    assert "The donors ['P01', 'p1 '] differ only in how they are written" in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "The label column holds measurements or barcodes", "error", "too many for classes"
)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda n, rng: rng.normal(size=n), "different numbers"),
        (lambda n, rng: rng.integers(0, 10**6, n), "different numbers"),
        (lambda n, rng: pd.array(rng.normal(size=n), dtype="Float64"), "different numbers"),
        (lambda n, rng: rng.normal(size=n).astype(object), "different numbers"),
        (lambda n, rng: np.where(np.arange(n) < 9, np.arange(n) / 8, np.nan), "9 different numbers"),
        (lambda n, rng: [f"AAC-{i}" for i in range(n)], "different names"),
        (lambda n, rng: pd.Categorical([f"AAC-{i}" for i in range(n)]), "different names"),
    ],
    ids=["floats", "counts", "nullable", "objects", "few annotated", "barcodes", "category"],
)  # fmt: skip
@pytest.mark.parametrize("use", ["fit", "embed_genes"])
def test_a_label_column_of_measurements_is_refused(labels: Callable[..., Any], message: str, use: str) -> None:
    rng = np.random.default_rng(0)
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=labels(40, rng)) for i in range(2)]
    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: learn(objects, donor_key="donor", label_key="what"),
        "embed_genes": lambda: stc.tl.embed_genes(objects, label_key="what", max_epochs=1),
    }
    with pytest.raises(ValueError, match=rf"`label_key`: column 'what' of `obs` has .*{message}.*too many for classes"):
        calls[use]()


@pytest.mark.parametrize(
    "labels",
    [
        lambda n: np.arange(n) % 4,
        lambda n: (np.arange(n) % 4).astype(float),
        lambda n: np.arange(n) % 2 == 0,
        lambda n: (np.arange(n) % 4) / 2,
        lambda n: pd.Categorical(np.arange(n) % 4),
        lambda n: [f"layer {i % 19}" for i in range(n)],
    ],
    ids=["ints", "floats", "truth values", "halves", "category", "many"],
)
def test_classes_may_be_numbers(labels: Callable[[int], Any]) -> None:
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=labels(40)) for i in range(2)]
    assert len(learn(objects, donor_key="donor", label_key="what").classes) == len(set(map(str, labels(40))))


def test_classes_in_two_types_are_one() -> None:
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=AS[kind](list(range(4)) * 10)) for i, kind in enumerate(AS)]
    assert learn(objects, donor_key="donor", label_key="what").classes == ["0", "1", "2", "3"]


@pytest.mark.situation(
    "Donors, slides, labels", "Every donor has a class of its own", "warning", "cannot be told apart"
)
@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["a", "b", "c"], "Every class occurs in one donor only (3 donors, 3 classes)"),
        (["a", "b", "a"], "Every donor has one class only (3 donors, 2 classes)"),
        (["a", "a", "a"], None),
    ],
    ids=["the donor itself", "a property of the donor", "one class"],
)
def test_classes_that_are_donors_are_warned_of(
    classes: list[str], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=name) for i, name in enumerate(classes)]
    learn(objects, donor_key="donor", label_key="what")
    assert ("cannot be told apart" in caplog.text) == (told is not None)
    assert told is None or told in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "Names of slides hold slashes, dots or other letters, and are written to a file", "works"
)
@pytest.mark.parametrize("name", ["run/3", "a.b", "100%/2", "%2F", "α β", "s-1_2.tif"])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_names_of_slides_survive_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    objects = [
        section(name, donor="d0", what=["a", "b"] * 20),
        section("other", seed=1, donor="d1", what=["a", "b"] * 20),
    ]
    model = learn(objects, donor_key="donor", label_key="what")
    model.save(tmp_path / "model")
    stc.tl.classify(objects[0], tmp_path / "model")
    predicted = stc.tl.predict_expression(objects[0], tmp_path / "model")
    assert isinstance(predicted, ad.AnnData)
    made: dict[Record, ad.AnnData] = {"classification": objects[0], "prediction": predicted}
    for record, adata in made.items():
        path = tmp_path / f"{record}.{suffix}"
        (adata.write_h5ad if suffix == "h5ad" else adata.write_zarr)(path)
        back = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
        found = read_record(back, record)
        assert found is not None
        assert found["provenance"] == {name: "in-sample"}


TEXT_FOR_NONE = ["nan", "NaN", "", " ", "<NA>"]


@pytest.mark.situation(
    "Donors, slides, labels", "A label is 'nan' or an empty text", "warning", "they count as not annotated"
)
@pytest.mark.parametrize("text", TEXT_FOR_NONE, ids=repr)
@pytest.mark.parametrize("kind", ["text", "category"])
def test_text_for_a_missing_label_is_no_class(text: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    values = pd.Series([text] * 10 + ["fat"] * 20 + ["tumour"] * 10, index=[f"s0-{i}" for i in range(40)])
    made = section("s0", what=values.astype("category") if kind == "category" else values)
    model = learn([made, section("s1", seed=1, what=["fat", "tumour"] * 20)], label_key="what")
    assert model.classes == ["fat", "tumour"]
    assert "10 spots have an empty text or 'nan' in column 'what' of `obs`: they count as not annotated" in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "A donor or batch is missing, 'nan' or an empty text", "error", "blank or 'nan'"
)
@pytest.mark.parametrize("text", [np.nan, None, *TEXT_FOR_NONE], ids=repr)
@pytest.mark.parametrize("key", ["donor_key", "batch_key"])
def test_text_for_a_missing_donor_is_refused(text: Any, key: str) -> None:
    values = pd.Series([text] * 3 + ["d0"] * 37, dtype=object, index=[f"s0-{i}" for i in range(40)])
    with pytest.raises(
        ValueError, match=rf"`{key}`: column 'donor' of `obs` is empty for 3 spots \(missing, blank or 'nan'\)"
    ):
        learn([section("s0", donor=values), section("s1", seed=1, donor="d1")], **{key: "donor"})


@pytest.mark.situation(
    "Donors, slides, labels", "A class may mean that a spot is not annotated", "warning", "is learnt as a class"
)
@pytest.mark.parametrize("name", ["NA", "None", "unknown", "Undetermined"])
def test_a_class_that_may_be_none_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = learn([section(f"s{i}", seed=i, what=[name, "tumour"] * 20) for i in range(2)], label_key="what")
    assert name in model.classes
    assert f"`label_key`: ['{name}'] in column 'what' of `obs` is learnt as a class" in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels",
    "Names of classes differ only in case, spaces or leading zeros",
    "warning",
    "are learnt as different classes",
)
@pytest.mark.parametrize("other", ["Tumour", "tumour ", "TUMOUR"], ids=repr)
def test_classes_that_look_alike_are_named(other: str, caplog: pytest.LogCaptureFixture) -> None:
    learn(
        [section("s0", what=["fat", "tumour"] * 20), section("s1", seed=1, what=["fat", other] * 20)], label_key="what"
    )
    assert f"The classes {sorted(['tumour', other])} in column 'what' of `obs` differ only in how" in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "All labels are one class", "warning", "there is nothing to tell apart"
)
def test_one_class_is_said(caplog: pytest.LogCaptureFixture) -> None:
    learn([section(f"s{i}", seed=i, what="tumour") for i in range(2)], label_key="what")
    assert "column 'what' of `obs` has one class, 'tumour': there is nothing to tell apart" in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels",
    "The column of donors or batches names spots or holds a measurement",
    "error",
    "does it name spots",
)
@pytest.mark.parametrize("key", ["donor_key", "batch_key"])
@pytest.mark.parametrize(
    "values", [[f"AAAC{i}-1" for i in range(40)], [0.1 * i for i in range(40)], [500 + 7 * i for i in range(40)]],
    ids=["barcodes", "fractions", "counts"],
)  # fmt: skip
def test_a_value_a_spot_is_no_donor(key: str, values: list[Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{key}`: column 'who' of `obs` has 40 different values in 40 spots"):
        learn([section("s0", who=values)], library_key="library_id", **{key: "who"})


def test_many_cores_of_an_array_are_donors() -> None:
    many = section("tma", n=80, who=[f"core{i // 4}" for i in range(80)])
    assert len(learn([many], donor_key="who", library_key="library_id").spec["donors"]) == 20


@pytest.mark.situation(
    "Donors, slides, labels", "Labels are codes in one object and names in another", "warning", "codes of the names"
)
@pytest.mark.parametrize(
    ("values", "said"),
    [([0, 1], True), (["0", "1"], True), ([0.0, 1.0], True), (["fat", "T2"], False)],
    ids=["int", "text", "float", "names"],
)
def test_codes_and_names_of_classes(values: list[Any], said: bool, caplog: pytest.LogCaptureFixture) -> None:
    learn([section("s0", what=["fat", "tumour"] * 20), section("s1", seed=1, what=values * 20)], label_key="what")
    assert ("are numbers (['0', '1']) and names (['fat', 'tumour'])" in caplog.text) == said
    assert ("codes of the names" in caplog.text) == said


def test_numbers_alone_are_classes(caplog: pytest.LogCaptureFixture) -> None:
    learn([section(f"s{i}", seed=i, what=[1, 2, np.nan, 4] * 10) for i in range(2)], label_key="what")
    assert "codes of the names" not in caplog.text


@pytest.mark.situation(
    "Donors, slides, labels", "Labels are classes that a model has predicted", "warning", "has predicted"
)
@pytest.mark.parametrize("key", [None, "mine"], ids=["stc_class", "another column"])
def test_labels_that_are_predictions(key: str | None, caplog: pytest.LogCaptureFixture) -> None:
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=["fat", "tumour"] * 20) for i in range(2)]
    model = learn(objects, donor_key="donor", label_key="what")
    assert "has predicted" not in caplog.text
    named: dict[str, Any] = {} if key is None else {"key_added": key}
    for adata in objects:
        stc.tl.classify(adata, model, **named)
    learn(objects, donor_key="donor", label_key=key or "stc_class")
    assert f"column {key or 'stc_class'!r} of `obs` holds classes that `stc.tl.classify` has predicted" in caplog.text


@pytest.mark.situation(
    "Tables, shapes and images", "Spots are marked as lying on glass (`in_tissue`)", "warning", "lying on glass"
)
@pytest.mark.parametrize("as_type", [int, bool, float, str], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("use", ["fit", "cross_validate", "embed_genes", "predict_expression", "classify"])
def test_spots_on_glass(use: str, as_type: type, caplog: pytest.LogCaptureFixture) -> None:
    mark: Any = (np.arange(40) % 4 > 0).astype(int).astype(as_type)
    objects = [section(f"s{i}", seed=i, donor=f"d{i}", what=["fat", "tumour"] * 20) for i in range(3)]
    new = section("new", seed=9, in_tissue=mark)
    model = learn(objects, donor_key="donor", label_key="what")
    assert "glass" not in caplog.text
    objects[1].obs["in_tissue"] = mark
    objects[2].obs["in_tissue"] = np.ones(40)
    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: learn(objects, donor_key="donor"),
        "cross_validate": lambda: stc.tl.cross_validate(objects, donor_key="donor", methods=["mean"], use_rep="X_own"),
        "embed_genes": lambda: stc.tl.embed_genes(objects, library_key="library_id", max_epochs=1),
        "predict_expression": lambda: stc.tl.predict_expression(new, model),
        "classify": lambda: stc.tl.classify(new, model),
    }
    calls[use]()
    told = "10 of 40" if use in ("predict_expression", "classify") else "10 of 80"
    assert caplog.text.count(f"{told} spots are marked as lying on glass") == 1
