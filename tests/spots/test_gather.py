"""From objects to one table: which column is which, and what belongs to which spot."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stcontrast as stc
from stcontrast._data import gather
from stcontrast._reading import Keys, resolve_all


def section(name: str, genes: list[str], *, seed: int, donor: str, day: str, subtypes: list[str | None] | None = None):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"library_id": name, "donor": donor, "day": day}, index=[f"{name}_{i}" for i in range(4)])
    if subtypes is not None:
        obs["subtype"] = pd.array(subtypes, dtype=object)
    counts = sparse.csr_matrix(rng.integers(1, 9, size=(4, len(genes))).astype(np.float32))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes), obsm={"spatial": rng.uniform(0, 9, (4, 2))})


@pytest.fixture
def objects():
    """Three sections of two donors and two days; they share two of their genes."""
    return [
        section("s1", ["A", "B", "C"], seed=0, donor="d1", day="mon", subtypes=["fat", None, "stroma", "fat"]),
        section("s2", ["B", "A", "D"], seed=1, donor="d2", day="mon"),
        section("s3", ["A", "B", "C"], seed=2, donor="d2", day="tue", subtypes=["glands", "fat", None, None]),
    ]


def gathered(objects, **keys):
    return gather(resolve_all(objects, Keys(**keys)), Keys(**keys))


@pytest.mark.parametrize("keys", [{"donor_key": "donor"}, {"batch_key": "donor"}])
def test_donor_and_batch_default_to_each_other(objects, keys):
    spots = gathered(objects, **keys)
    assert spots.donor.tolist() == spots.batch.tolist() == ["d1"] * 4 + ["d2"] * 8


def test_donor_and_batch_may_differ_and_are_the_slide_where_neither_is_named(objects):
    spots = gathered(objects, donor_key="donor", batch_key="day")
    assert spots.donor.tolist() == ["d1"] * 4 + ["d2"] * 8
    assert spots.batch.tolist() == ["mon"] * 8 + ["tue"] * 4
    bare = gathered(objects)
    assert bare.donor.tolist() == bare.batch.tolist() == ["s1"] * 4 + ["s2"] * 4 + ["s3"] * 4


NO_KEY = "No `donor_key`: each of 3 slides counts as a donor. "


@pytest.mark.situation(
    "Donors, slides, labels", "What counts as donors may share one", "warning", "if it names the donors"
)
@pytest.mark.parametrize(
    ("keys", "columns", "told"),
    [
        pytest.param({}, {}, NO_KEY + "Column 'donor' of `obs` is 'd2' for several of them, ['s2', 's3']: if it names the donors", id="no key"),
        pytest.param(
            {"batch_key": "library_id"}, {}, "Column 'library_id' of `obs` names 3 donors. Column 'donor' of `obs` is 'd2' for several",
            id="batch_key names slides",
        ),
        pytest.param(
            {"donor_key": "library_id"}, {"donor": 1, "Patient ID": [7, 8.0, 8]}, "Column 'Patient ID' of `obs` is '8' for several",
            id="donor_key names slides",
        ),
        pytest.param(
            {"batch_key": "day"}, {}, "Column 'day' of `obs` names 2 donors. Column 'donor' of `obs` is 'd2' for several",
            id="a donor is in two batches",
        ),
        pytest.param({}, {"donor": ["d1", "d2", "d3"]}, NO_KEY + "If slides share a donor, name", id="no key, a donor a slide"),
        pytest.param({"donor_key": "library_id"}, {"donor": 1}, None, id="all slides of one donor, told apart on purpose"),
        pytest.param({"donor_key": "library_id"}, {"donor": [1, np.nan, np.nan]}, None, id="unknown donors"),
        pytest.param(
            {"donor_key": "donor"}, {"donor_sex": ["f", "m", "f"], "patient_age": 40, "mouse": ["a", "b", "b"]}, None,
            id="properties of donors",
        ),
        pytest.param({"donor_key": "donor"}, {"subject": ["a", "b", "c"]}, None, id="a finer column"),
        pytest.param({"donor_key": "donor", "batch_key": "day"}, {}, None, id="batches of several donors"),
    ],
)  # fmt: skip
def test_slides_that_may_share_a_donor(objects, keys, columns, told, caplog):
    for name, value in columns.items():
        values = value if isinstance(value, list) else [value] * 3
        for of_object, one in zip(objects, values, strict=True):
            of_object.obs[name] = one
    with caplog.at_level(logging.WARNING, "stcontrast"):
        gathered(objects, **keys)
    said = [message for message in caplog.messages if "too good" in message]
    assert [told in message for message in said] == ([] if told is None else [True])


def counted(name: str, donor: str, *, seed: int, n: int = 40, n_genes: int = 30, rate: float = 2.0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"library_id": name, "donor": donor}, index=[f"spot{i}" for i in range(n)])
    counts = sparse.csr_matrix(rng.poisson(rate, (n, n_genes)).astype(np.float32))
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    return ad.AnnData(counts, obs=obs, var=var, obsm={"spatial": rng.uniform(0, 9, (n, 2))})


def copy_of(slide: ad.AnnData, name: str, donor: str) -> ad.AnnData:
    copied = slide.copy()
    copied.obs["library_id"], copied.obs["donor"] = name, donor
    return copied


COPIES = {
    "as it is": lambda copied: copied,
    "spots and genes in another order": lambda copied: copied[::-1, ::-1].copy(),
    "other names of spots, other places": lambda copied: ad.AnnData(
        copied.X, obs=copied.obs.set_axis(copied.obs_names + "-1"), var=copied.var, obsm={"spatial": 3 * copied.obsm["spatial"]}
    ),
    "a part of it": lambda copied: copied[5:20].copy(),
    "fewer genes": lambda copied: copied[:, 3:].copy(),
    "beside other spots": lambda copied: ad.concat(
        [copied[:30], copy_of(counted("", "", seed=5, n=20), *copied.obs.iloc[0])], index_unique="-"
    ),
}  # fmt: skip


@pytest.mark.situation(
    "Donors, slides, labels", "A slide is given again as that of another donor", "error", "have the same counts"
)
@pytest.mark.parametrize("change", COPIES)
def test_a_slide_under_two_donors(change):
    slides = [counted("s1", "d1", seed=0), counted("s2", "d2", seed=1)]
    again = COPIES[change](copy_of(slides[0], "s3", "d3"))
    with pytest.raises(
        ValueError, match=r"'s1' and 's3' have the same counts .*, and belong to two donors, 'd1' and 'd3'"
    ):
        gathered([*slides, again], donor_key="donor")
    sides = [resolve_all(part, Keys(donor_key="donor")) for part in (slides, [again])]
    with pytest.raises(ValueError, match="have the same counts"):
        gather(sides[0], Keys(donor_key="donor"), gene_side=sides[1])


def test_a_slide_of_one_donor_that_counts_twice(caplog):
    slides = [counted("s1", "d1", seed=0), counted("s2", "d2", seed=1)]
    gathered([*slides, copy_of(slides[0], "s3", "d1")], donor_key="donor")
    assert "'s1' and 's3' have the same counts in 40 of 40 spots: they seem to be one slide" in caplog.text


@pytest.mark.parametrize("chance", ["few counts", "few spots", "few genes", "less than half"])
def test_spots_that_are_equal_by_chance(chance, caplog):
    how = {"few counts": {"rate": 0.05}, "few spots": {"n": 4}, "few genes": {"n_genes": 6}, "less than half": {}}[
        chance
    ]
    one = counted("s1", "d1", seed=0, **how)
    two = copy_of(one, "s2", "d2")
    if chance == "less than half":
        two.X = sparse.vstack([one.X[:19], counted("", "", seed=1, n=21).X]).tocsr()
    gathered([one, two], donor_key="donor")
    assert "same counts" not in caplog.text


def test_one_slide_has_one_donor(objects, caplog):
    gathered(objects[:1])
    assert "too good" not in caplog.text


def test_fit_with_a_donor_alone_makes_the_model_of_a_batch_alone():
    sdata = stc.datasets.toy(n_donors=2, n_spots=30, n_genes=20)
    options = {"method": "tpirbae", "options": {"max_epochs": 1, "vae_epochs": 1, "n_latent": 3}}
    models = [stc.tl.fit(sdata, **{key: "donor"}, **options) for key in ("donor_key", "batch_key")]
    assert models[0].model_id == models[1].model_id
    batches = [model.state()["method"]["latent"]["batches"] for model in models]
    assert batches == [["donor1", "donor2"]] * 2


def test_counts_are_of_the_shared_genes_and_depth_is_of_the_full_library(objects):
    spots = gathered(objects)
    assert list(spots.genes) == ["A", "B"]
    for i, table in enumerate(objects):
        rows = slice(4 * i, 4 * i + 4)
        np.testing.assert_array_equal(spots.counts[rows].toarray(), table[:, ["A", "B"]].X.toarray())
        np.testing.assert_array_equal(spots.depth[rows], table.X.toarray().sum(axis=1))
        np.testing.assert_array_equal(spots.xy[rows], table.obsm["spatial"])
    assert spots.slide.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(spots.slides) == ["s1", "s2", "s3"]
    assert spots.name[5] == "s2_1"


def test_labels_are_names_of_classes_in_order_and_may_be_missing(objects):
    spots = gathered(objects, label_key="subtype")
    assert spots.classes == ["fat", "glands", "stroma"]
    assert spots.label.tolist() == [0, -1, 2, 0, -1, -1, -1, -1, 1, 0, -1, -1]
    assert gathered(objects).classes == []


def test_objects_without_an_image_are_the_gene_side(objects):
    keys = Keys(donor_key="donor", batch_key="day", label_key="subtype")
    first, *alone = (resolve_all([table], keys) for table in objects)
    spots = gather(first, keys, gene_side=[source for sources in alone for source in sources])
    together = gather(resolve_all(objects, keys), keys)
    # the same numbers as if all had an image, in two parts
    for name in ("name", "donor", "batch", "depth", "label", "slide", "xy"):
        both = np.concatenate([getattr(spots, name), getattr(spots.gene_side, name)])
        np.testing.assert_array_equal(both, getattr(together, name))
    np.testing.assert_array_equal(spots.counts.toarray(), together.counts[:4].toarray())
    np.testing.assert_array_equal(spots.gene_side.counts.toarray(), together.counts[4:].toarray())
    for part in (spots, spots.gene_side):
        assert (part.genes, part.classes, part.slides) == (together.genes, together.classes, together.slides)
    assert gather(first, keys).gene_side is None


def test_a_gene_side_where_nothing_was_counted_is_none(objects):
    empty = objects[1].copy()
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    sides = [resolve_all([table], Keys()) for table in (objects[0], empty)]
    assert gather(sides[0], Keys(), gene_side=sides[1]).gene_side is None
    with pytest.raises(ValueError, match=r"Slides share a name: \['s1'\]"):
        gather(sides[0], Keys(), gene_side=sides[0])


def whole_numbers(kind: str, *, n: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(6.0, (n, 30)).astype(np.float64)
    if kind == "times ten":
        counts *= 10
    elif kind == "per million, rounded":
        counts = np.rint(1e6 * counts / counts.sum(axis=1, keepdims=True))
    elif kind == "empty":
        counts[:] = 0
    elif kind in ("ones", "logarithms, rounded", "clipped", "deep"):
        counts = rng.poisson(rng.gamma(0.3, 20.0, 1500), (n, 1500)).astype(np.float64)
        if kind == "logarithms, rounded":
            counts = np.rint(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)))
        counts = np.minimum(counts, {"ones": 1, "clipped": 10}.get(kind, np.inf))
    elif kind == "even":  # by chance, in a few values
        counts = np.where(np.arange(30) < 2, 2.0 * rng.integers(1, 3, (n, 30)), 0.0)
    obs = pd.DataFrame({"library_id": f"s{seed}", "donor": f"d{seed}"}, index=[f"s{seed}-{i}" for i in range(n)])
    return ad.AnnData(counts.astype(np.float32), obs=obs, obsm={"spatial": rng.uniform(0, 9, (n, 2))})


@pytest.mark.situation("Counts", "Counts are whole numbers, but not raw", "warning", "Each of the slides")
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("times ten", "are all multiples of 10"),
        ("per million, rounded", "the same sum of counts in every spot"),
        ("ones", "counts of at most 1 although"),
        ("clipped", "counts of at most 10 although"),
        ("logarithms, rounded", "although its spots have many"),
    ],
    ids=["multiplied", "per million, rounded", "ones for all", "clipped", "logarithms, rounded"],
)
def test_whole_numbers_that_are_no_counts(kind: str, told: str, caplog):
    slide = whole_numbers(kind)
    gathered([slide, whole_numbers("raw" if slide.n_vars == 30 else "deep", seed=1), whole_numbers(kind, seed=2)])
    assert caplog.text.count("Each of the slides ['s0', 's2'] has ") == 1
    assert told in caplog.text


@pytest.mark.situation("Counts", "A slide has genes and no counts at all", "warning", "no counts at all")
def test_a_slide_without_any_count_is_named(caplog):
    gathered([whole_numbers("raw"), whole_numbers("empty", seed=1)])
    assert "Each of the slides ['s1'] has a table with genes and no counts at all" in caplog.text


def test_counts_are_not_suspected(caplog):
    without = whole_numbers("raw", seed=3)
    gathered([whole_numbers("raw"), whole_numbers("even", seed=1), without])
    gathered([without, without[:, :0].copy()][:1])
    gathered([whole_numbers("deep")])
    # a few shared genes of a whole transcriptome
    panel = whole_numbers("raw", seed=1)
    gathered([whole_numbers("deep"), panel[:, :5].copy()])
    # small bins: ones are all there is
    gathered([counted("bins", "d1", seed=0, n_genes=500, rate=0.05)])
    assert "Each of the slides" not in caplog.text


@pytest.mark.situation(
    "Counts", "A table was cut to its highly variable genes", "warning", "If other genes were left out"
)
@pytest.mark.parametrize("of_all", [True, False], ids=["all tables", "one of several"])
def test_a_table_of_highly_variable_genes(of_all, caplog):
    slides = [counted("s1", "d1", seed=0), counted("s2", "d2", seed=1), counted("s3", "d3", seed=2)]
    for slide in slides[: 3 if of_all else 1]:
        slide.var["highly_variable"] = np.arange(slide.n_vars) % 2 > 0
    cut = [slide[:, slide.var["highly_variable"]] if "highly_variable" in slide.var else slide for slide in slides]
    gathered(cut, donor_key="donor")
    told = f"In {3 if of_all else 1} of 3 tables all genes are marked 'highly_variable' (15 of them). If other genes were left out"
    assert told in caplog.text


def test_highly_variable_genes_that_are_only_marked(caplog):
    slides = [counted("s1", "d1", seed=0), counted("s2", "d2", seed=1)[:, :0].copy()]
    slides[0].var["highly_variable"] = np.arange(30) > 0
    slides[1].var["highly_variable"] = True
    gathered(slides, donor_key="donor")
    assert "highly_variable" not in caplog.text


def test_a_table_without_genes_has_no_counts_to_miss(caplog):
    bare = whole_numbers("raw", seed=1)[:, :0].copy()
    gathered([whole_numbers("raw"), bare])
    assert "Each of the slides" not in caplog.text
