"""The report: what is in the page, what is refused, and how it works in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import stcontrast as stc
from stcontrast._report import SlideNumbers, judged, slide_maps
from tests.tl.toy import LABELS

EVIL = "</script><script>document.title='taken'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Tags(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def data():
    sdata = stc.datasets.toy(n_donors=3, n_spots=40, n_genes=12)
    sdata["table"].var_names = [EVIL, *sdata["table"].var_names[1:]]
    stc.pp.image_features(sdata, encoder="color")
    return sdata


@pytest.fixture(scope="module")
def cv(data):
    return stc.tl.cross_validate(data, donor_key="donor", label_key=LABELS, methods=["ridge", "mean"], n_jobs=1)


@pytest.fixture(scope="module")
def model(data):
    return stc.tl.fit(data, batch_key="donor", label_key=LABELS, method="ridge")


@pytest.fixture(scope="module")
def page(cv, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "cv.html"
    cv.report(path, data=data, title=f"Skin & {EVIL}")
    return path


def maps_of(path):
    return json.loads(re.search(r'id="maps-data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


def test_the_page_asks_no_other_computer(page):
    tags = Tags(page.read_text(encoding="utf-8")).tags
    assert not [attrs for tag, attrs in tags if tag in ("link", "iframe", "img", "object")]
    assert all("src" not in attrs for tag, attrs in tags if tag == "script")
    assert all(attrs["href"].startswith("#") for tag, attrs in tags if tag == "a")
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_names_are_text_and_never_code(page):
    found = Tags(page.read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in found.tags) == 2
    # title, headline, and the gene in the table and in the list of maps
    assert found.text.count(EVIL) == 4
    assert EVIL in maps_of(page)["genes"]


def test_the_numbers_of_the_genes_are_those_of_the_scores(page, cv):
    text = page.read_text(encoding="utf-8")
    scores = cv.scores.query("method == 'ridge' and metric == 'pearson'").groupby(["gene", "donor"])["value"].mean()
    for gene in ("GENE5", "GENE7"):
        row = re.search(rf'<th scope="row">{gene}</th>(.*?)</tr>', text, re.DOTALL)[1]
        r, lowest = (float(value) for value in re.findall(r'data-value="([^"]*)"', row)[:2])
        assert r == pytest.approx(scores[gene].mean())
        assert lowest == pytest.approx(scores[gene].min())


def test_the_maps_hold_measurement_and_prediction(page, cv, data):
    maps = maps_of(page)
    slide, gene = maps["slides"][0], maps["genes"].index("GENE5")
    n = slide["n_drawn"]
    assert [one["name"] for one in maps["slides"]] == ["donor1_a", "donor2_a", "donor3_a"]
    assert all(one["picture"]["source"].startswith("data:image/jpeg;base64,") for one in maps["slides"])
    counts = data["table"].to_df()
    measured = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))["GENE5"].to_numpy()[:n]
    predicted = cv.predictions[:n, "GENE5"].layers["ridge"].ravel()
    low, high = maps["low"][gene], maps["high"][gene]
    for values, kind in ((measured, "observed"), (predicted, "predicted")):
        levels = np.frombuffer(base64.b64decode(slide[kind]), np.uint8)[gene * n : (gene + 1) * n]
        assert np.abs(low + levels / 254 * (high - low) - np.clip(values, low, high)).max() < (high - low) / 254
    assert slide["r"][gene] == pytest.approx(np.corrcoef(measured, predicted)[0, 1], abs=1e-4)


def test_the_maps_hold_annotated_and_predicted_classes_of_held_out_donors(page, cv):
    maps = maps_of(page)
    obs = cv.predictions.obs
    names = [one["name"] for one in maps["classes"]]
    assert set(names) == set(obs["annotated"].dropna())
    for slide in maps["slides"]:
        here = obs[obs["slide"] == slide["name"]]
        for kind, column in (("observed", "annotated"), ("predicted", "class_ridge")):
            expected = [255 if pd.isna(name) else names.index(name) for name in here[column]]
            np.testing.assert_array_equal(codes_of(slide, kind), expected)
    assert ("option", {"value": "classes"}) in Tags(page.read_text(encoding="utf-8")).tags


def test_without_labels_there_is_no_map_of_classes(data, tmp_path):
    without = stc.tl.cross_validate(data, donor_key="donor", methods=["mean"], n_genes=30)
    assert list(without.predictions.obs) == ["donor", "slide"]
    without.report(tmp_path / "r.html")
    assert maps_of(tmp_path / "r.html")["classes"] is None


def test_card_classes_and_slides(page):
    text = Tags(page.read_text(encoding="utf-8")).text
    for part in (
        "donor1, donor2, donor3",
        "Confusion",
        "Calibration",
        "out of distribution",
        "Can I trust this gene?",
        "ceiling",
    ):
        assert part in text


def test_without_data_there_are_maps_without_a_picture(cv, tmp_path):
    cv.report(tmp_path / "plain.html", method="mean")
    assert all(slide["picture"] is None and slide["observed"] for slide in maps_of(tmp_path / "plain.html")["slides"])


def test_of_a_model(model, data, tmp_path):
    model.report(tmp_path / "bare.html")
    assert maps_of(tmp_path / "bare.html") is None
    model.report(str(tmp_path / "model.html"), data)
    assert len(maps_of(tmp_path / "model.html")["slides"]) == 3
    text = Tags((tmp_path / "model.html").read_text(encoding="utf-8")).text
    assert "the model was trained on this slide" in text
    assert model.model_id in text


def classified(data, model):
    """The slides with predicted classes, one of the annotated ones unknown to the model, and with a bad name."""
    table = data["table"].copy()
    sdata = type(data)(
        images=dict(data.images), shapes=dict(data.shapes), tables={"table": table, "stc_pred": data["stc_pred"].copy()}
    )
    stc.tl.classify(sdata, model)
    labels = table.obs[LABELS].astype(object)
    labels.iloc[:3] = EVIL
    labels.iloc[3:6] = None
    table.obs["annotated"] = pd.Categorical(labels)
    return sdata


def codes_of(slide, kind):
    return np.frombuffer(base64.b64decode(slide[f"{kind}_class"]), np.uint8)


def test_maps_of_classes(model, data, tmp_path):
    sdata = classified(data, model)
    model.report(tmp_path / "r.html", sdata, label_key="annotated")
    maps = maps_of(tmp_path / "r.html")
    names = [one["name"] for one in maps["classes"]]
    assert names == [*model.classes, EVIL]
    assert len({one["color"] for one in maps["classes"]}) == len(names)
    table, first = sdata["table"], maps["slides"][0]
    here = (table.obs["region"] == first["name"]).to_numpy()
    for kind, column in (("observed", "annotated"), ("predicted", "stc_class")):
        expected = [255 if pd.isna(name) else names.index(name) for name in table.obs[column][here]]
        np.testing.assert_array_equal(codes_of(first, kind), expected)
    found = Tags((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in found.tags) == 2
    assert EVIL in found.text
    assert ("option", {"value": "classes"}) in found.tags


def test_maps_of_predicted_classes_alone_and_of_none(model, data, tmp_path):
    sdata = classified(data, model)
    model.report(tmp_path / "predicted.html", sdata)
    maps = maps_of(tmp_path / "predicted.html")
    assert [one["name"] for one in maps["classes"]] == [
        name for name in model.classes if (sdata["table"].obs["stc_class"] == name).any()
    ]
    assert all(slide["observed_class"] is None and slide["predicted_class"] for slide in maps["slides"])
    model.report(tmp_path / "none.html", data)
    maps = maps_of(tmp_path / "none.html")
    assert maps["classes"] is None
    assert all(slide["observed_class"] is slide["predicted_class"] is None for slide in maps["slides"])
    assert 'value="classes"' not in (tmp_path / "none.html").read_text(encoding="utf-8")
    with pytest.raises(KeyError, match=r"`label_key`: no column 'kind'.*'subtype'"):
        model.report(tmp_path / "x.html", data, label_key="kind")
    assert not (tmp_path / "x.html").exists()


def test_of_a_model_of_classes_alone(data, tmp_path):
    labels = data["table"][:, :0].copy()
    del labels.uns["spatialdata_attrs"]
    alone = stc.tl.fit(labels, batch_key="donor", label_key=LABELS, method="ridge", library_key="region")
    alone.report(tmp_path / "classes.html")
    assert 'id="gene-table"' not in (tmp_path / "classes.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        pytest.param("report.txt", {}, ValueError, "must end in '.html'", id="no web page"),
        pytest.param("there.html", {}, FileExistsError, "overwrite=True", id="taken"),
        pytest.param("folder.html", {"overwrite": True}, FileExistsError, "folder", id="folder"),
        pytest.param("new.html", {"method": "knn"}, KeyError, "was not run", id="unknown method"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(cv, tmp_path, name, options, error, says):
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(error, match=says):
        cv.report(tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


def test_other_slides_and_other_models_are_refused(cv, model, data, tmp_path):
    other = stc.datasets.toy(n_donors=1, n_spots=40, n_genes=12, seed=3)
    with pytest.raises(KeyError, match="stc_pred"):
        model.report(tmp_path / "x.html", other)
    table = data["stc_pred"].copy()
    table.uns["stcontrast"]["prediction"]["model_id"] = "another"
    del table.uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="made by the model another"):
        model.report(tmp_path / "x.html", table)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_on_request(cv, tmp_path):
    (tmp_path / "r.html").write_text("old")
    cv.report(tmp_path / "r.html", overwrite=True)
    assert (tmp_path / "r.html").read_text(encoding="utf-8") != "old"


@pytest.mark.parametrize(
    ("row", "trust"),
    [
        pytest.param({"r": 0.5, "lowest": 0.2, "ceiling": 0.8, "coverage": 0.9}, "yes", id="good"),
        pytest.param({"r": 0.5, "lowest": -0.1, "ceiling": 0.8, "coverage": 0.9}, "partly", id="a donor below 0"),
        pytest.param({"r": 0.35, "lowest": 0.2, "ceiling": 0.9, "coverage": 0.9}, "partly", id="far from its ceiling"),
        pytest.param({"r": 0.5, "lowest": 0.2, "ceiling": 0.8, "coverage": 0.5}, "partly", id="interval too narrow"),
        pytest.param({"r": 0.05, "lowest": 0.01, "ceiling": 0.06, "coverage": 0.9}, "no", id="hardly above 0"),
        pytest.param({"r": np.nan, "lowest": np.nan, "ceiling": 0.8, "coverage": 0.9}, "unknown", id="no r"),
        pytest.param({"r": 0.5, "lowest": 0.2, "ceiling": np.nan, "coverage": np.nan}, "yes", id="unknown is left out"),
        pytest.param({"r": 0.5}, "yes", id="r alone"),
    ],
)
def test_the_rule_of_trust(row, trust):
    assert judged(pd.DataFrame([row]))["trust"].item() == trust


def test_eight_large_slides_stay_small():
    rng = np.random.default_rng(0)
    n, genes = 30_000, [f"G{i}" for i in range(300)]
    xy = rng.uniform(0, 1000, (n, 2))
    values = rng.random((n, 48), dtype=np.float32)
    slides = [SlideNumbers(f"s{i}", "", xy, values, values) for i in range(8)]
    maps = slide_maps(slides, genes[:48])
    assert len(json.dumps(maps)) < 10e6
    assert maps["genes"]
    assert maps["slides"][0]["n_drawn"] == 20_000


PROBE = """<script>
addEventListener("load", () => {
  const out = {}, shown = () => [...document.querySelectorAll("#gene-table tbody tr")].filter((r) => !r.hidden).map((r) => r.cells[0].textContent);
  const headers = [...document.querySelectorAll("#gene-table thead th")];
  out.first = shown();
  headers[0].querySelector("button").click();
  out.byName = shown(); out.sort = headers.map((h) => h.getAttribute("aria-sort"));
  headers[0].querySelector("button").click();
  out.reversed = shown();
  const search = document.getElementById("search");
  search.value = "gene1"; search.dispatchEvent(new Event("input"));
  out.searched = shown(); out.found = document.getElementById("found").textContent;
  const reach = "a[href],button,input,select,[tabindex]";
  out.reachable = [...document.querySelectorAll(reach)].every((e) => { e.focus(); return document.activeElement === e; });
  out.labelled = [...document.querySelectorAll("input,select")].every((e) => e.labels.length === 1);
  const slide = document.getElementById("slide");
  slide.value = "1"; slide.dispatchEvent(new Event("change"));
  setTimeout(() => {
    out.about = document.getElementById("about").textContent;
    const c = document.getElementById("predicted"), seen = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    out.colors = new Set(seen).size; out.title = document.title; out.wide = document.documentElement.scrollWidth <= innerWidth;
    const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = JSON.stringify(out); document.body.append(pre);
  }, 500);
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    command = [
        CHROMIUM, "--no-sandbox", "--headless=new", "--disable-gpu", f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = Tags(re.search(r'<pre id="probe">.*?</pre>', dom, re.DOTALL)[0]).text
    out = json.loads(found)
    assert len(out["first"]) == 12
    assert out["first"] != out["byName"]
    assert out["sort"][0] == "ascending"
    assert out["sort"][1:] == [None] * (len(out["sort"]) - 1)
    assert out["reversed"] == out["byName"][::-1]
    assert sorted(out["searched"]) == sorted(name for name in out["first"] if "gene1" in name.lower())
    assert out["found"] == f"{len(out['searched'])} of 12 genes"
    assert out["reachable"]
    assert out["labelled"]
    assert out["about"].startswith("donor2_a")
    assert out["colors"] > 50
    assert out["title"] == f"Skin & {EVIL}"
    assert out["wide"]


CLASS_PROBE = """<script>
addEventListener("load", () => {
  const gene = document.getElementById("gene"), out = {}, at = (id) => document.getElementById(id);
  const later = (next) => setTimeout(next, 400);
  const seen = () => [at("scale").offsetParent !== null, at("legend").offsetParent !== null];
  const pixel = (id) => { const c = at(id); return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].join(); };
  later(() => {
    out.gene = seen(); const before = pixel("predicted");
    gene.value = "classes"; gene.dispatchEvent(new Event("change"));
    later(() => {
      out.classes = seen(); out.changed = before !== pixel("predicted");
      out.captions = [at("observed-caption").textContent, at("predicted-caption").textContent];
      gene.value = "0"; gene.dispatchEvent(new Event("change"));
      later(() => {
        out.back = seen(); out.same = before === pixel("predicted");
        const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = JSON.stringify(out); document.body.append(pre);
      });
    });
  });
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
def test_classes_in_a_browser(model, data, tmp_path):
    model.report(tmp_path / "r.html", classified(data, model), label_key="annotated")
    probed = tmp_path / "probed.html"
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    probed.write_text(text.replace("</body>", CLASS_PROBE), encoding="utf-8")
    command = [
        CHROMIUM, "--no-sandbox", "--headless=new", "--disable-gpu", "--window-size=1200,900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    out = json.loads(Tags(re.search(r'<pre id="probe">.*?</pre>', dom, re.DOTALL)[0]).text)
    assert out["gene"] == out["back"] == [True, False]
    assert out["classes"] == [False, True]
    assert out["changed"]
    assert out["same"]
    assert out["captions"][0] == "Classes, annotated on donor1_a"
    assert re.fullmatch(r"Classes, predicted: \d+ % of \d+ annotated spots agree", out["captions"][1])
