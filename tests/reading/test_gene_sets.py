from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stcontrast._reading import named_gene_sets

GMT = "HALLMARK_A\thttps://x.org\tG1\tG2\tG1\t\n\nB\tna\tG3\n"
SETS = {"HALLMARK_A": ["G1", "G2"], "B": ["G3"]}


@pytest.mark.parametrize(
    "content",
    [
        GMT.encode(),
        GMT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + GMT.encode(),
        gzip.compress(GMT.encode()),
        GMT.rstrip().encode(),
    ],
    ids=["plain", "windows", "byte order mark", "gzip", "no last newline"],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_gmt(tmp_path, content, kind):
    (tmp_path / "sets.gmt").write_bytes(content)
    assert named_gene_sets(kind(tmp_path / "sets.gmt")) == SETS


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, np.array, pd.Index, pd.Series])
def test_mappings(kind):
    found = named_gene_sets({"a": kind(["G1", "G2"])})
    assert sorted(found["a"]) == ["G1", "G2"]
    assert {type(gene) for gene in found["a"]} == {str}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"A\tna\n", "line 1 must hold a name, a description and at least one gene"),
        (b"A\tna\tG1\n\nB,na,G2\n", "line 3 must hold.*found 'B,na,G2'"),
        (b"A\tna\tG1\nA\tna\tG2\n", "line 2 holds the set 'A' again"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not a GMT file: it is not text"),
        (b"\x1f\x8bnothing", "is not a GMT file: it is not text"),
        (b"a/b\tna\tG1\n", "text without a slash.*found 'a/b'"),
        (b"\tna\tG1\n", "must be text"),
    ],
    ids=["empty", "no genes", "commas", "twice", "a picture", "broken gzip", "slash", "no name"],
)
def test_what_is_no_gmt(tmp_path, content, message):
    (tmp_path / "x.gmt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        named_gene_sets(tmp_path / "x.gmt")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file.*absent\.gmt"):
        named_gene_sets(tmp_path / "absent.gmt")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "is empty"),
        ({"a": "CD3D"}, "genes of 'a' must be a list of names, found 'CD3D'"),
        ({"a": []}, "genes of 'a' must be a list of names, not empty"),
        ({"a": ["CD3D", 3]}, r"genes of 'a' .* found \[3\]"),
        ({"a": None}, "genes of 'a' must be a list of names, found None"),
        ({1: ["CD3D"]}, "name of a set must be text"),
    ],
    ids=["none", "text", "empty", "a number", "nothing", "name is a number"],
)
def test_what_is_no_mapping_of_genes(sets, message):
    with pytest.raises(ValueError, match=message):
        named_gene_sets(sets)
