"""Values of `obs` as names: the same donor, slide or spot in files that keep it in different types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stcontrast as stc
from stcontrast._reading import look_alike, names_of
from tests.synthetic import picture, points, slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

pa = pytest.importorskip("pyarrow")

AS: dict[str, Any] = {
    "int64": lambda ids: np.array(ids),
    "uint8": lambda ids: np.array(ids, dtype=np.uint8),
    "float64": lambda ids: np.array(ids, dtype=float),
    "text": lambda ids: np.array([str(i) for i in ids]),
    "text of floats": lambda ids: np.array([f"{i}.0" for i in ids], dtype=object),
    "category of ints": lambda ids: pd.Categorical(ids),
    "category of text": lambda ids: pd.Categorical([str(i) for i in ids]),
    "nullable ints": lambda ids: pd.array(ids, dtype="Int64"),
    "arrow text": lambda ids: pd.Series([str(i) for i in ids], dtype=pd.ArrowDtype(pa.string())).array,
    "arrow ints": lambda ids: pd.Series(ids, dtype=pd.ArrowDtype(pa.int64())).array,
    "mixed": lambda ids: np.array([i if i % 2 else f"{i}" for i in ids], dtype=object),
}


@pytest.mark.parametrize("kind", AS)
@given(ids=st.lists(st.integers(0, 255), min_size=1, max_size=6))
def test_a_number_is_one_name_whatever_its_type(kind: str, ids: list[int]) -> None:
    assert names_of(pd.Series(AS[kind](ids))).tolist() == [str(i) for i in ids]


@pytest.mark.parametrize(
    "names", [["1.5", "1.50"], ["01", "1"], ["a.0", "a"], ["1.0a", "1"], ["1.0.0", "1"], ["v1.0", "v1"], ["", "0"], [1.5, 1]]
)  # fmt: skip
def test_other_names_stay_apart(names: list[Any]) -> None:
    assert len(set(names_of(pd.Series(names, dtype=object)).tolist())) == 2


def test_what_differs_in_writing_alone_looks_alike() -> None:
    assert look_alike(["A", "a", "b", "p01", "P1", "1 ", "1", "10", "100", "x"]) == [
        ["1", "1 "],
        ["A", "a"],
        ["P1", "p01"],
    ]


def with_ids(table_ids: Any, shape_ids: Any) -> SpatialData:
    sdata = slide(picture(), points(len(shape_ids)))
    sdata["s1"].index = pd.Index(shape_ids)
    sdata["table"].obs["spot_id"] = table_ids
    return sdata


@pytest.mark.situation(
    "Donors, slides, labels", "Ids of spots are numbers in one element and text in the other", "works"
)
@pytest.mark.parametrize("of_shapes", ["int64", "float64", "text"])
@pytest.mark.parametrize("of_table", ["int64", "float64", "text", "text of floats", "category of text", "arrow text"])
def test_ids_of_two_types_are_matched(of_table: str, of_shapes: str) -> None:
    order = [3, 0, 4, 1, 2]
    sdata = with_ids(AS[of_table](order), AS[of_shapes](range(5)))
    expected = stc.pp.crops(with_ids(np.arange(5), np.arange(5)), field_um=20, size_px=16)
    np.testing.assert_array_equal(stc.pp.crops(sdata, field_um=20, size_px=16), expected[order])


@pytest.mark.situation("Donors, slides, labels", "Ids of spots do not match", "error")
@pytest.mark.parametrize(
    ("table_ids", "shape_ids", "types"),
    [
        ([f"{i:02d}" for i in range(5)], np.arange(5), "the table are of type string, those of the shapes of type integer"),
        (np.arange(5), ["0", "1", "2", "3", "x"], "the table are of type integer, those of the shapes of type string"),
        (np.arange(5) + 0.5, np.arange(5), "the table are of type floating, those of the shapes of type integer"),
        (["0", "1", "2", "3", "4"], [0, 1, 2, 3, "3.0"], "the table are of type string, those of the shapes of type mixed"),
    ],
    ids=["leading zeros", "one is absent", "between", "names that coincide"],
)  # fmt: skip
def test_ids_that_do_not_match_are_refused_with_their_types(table_ids: Any, shape_ids: Any, types: str) -> None:
    with pytest.raises(ValueError, match=types):
        stc.pp.crops(with_ids(table_ids, shape_ids), field_um=20, size_px=16)
