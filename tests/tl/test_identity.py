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
    "Donors differ in case, spaces or leading zeros alone",
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
