"""The store that the page on viewers writes, opened by the viewers themselves."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata

import stcontrast as stc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[1] / "docs/user_guide/viewers.md"


def blocks() -> tuple[str, str, str]:
    """The code of the page: before Vitessce's, Vitessce's, and after it."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [at] = [number for number, block in enumerate(code) if "import vitessce" in block]
    return "\n".join(code[:at]), code[at], "\n".join(code[at + 1 :])


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Variables of the page after the store was written, in the folder where it lies."""
    found = {"stc": stc, "sdata": stc.datasets.toy(n_donors=3, n_spots=60, n_genes=60)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("viewers"))
        exec(compile(blocks()[0], "viewers.md", "exec"), found)
        yield found


def test_the_store_has_what_the_page_says(names: dict[str, Any]) -> None:
    store = spatialdata.read_zarr("for_viewers.zarr")
    prediction = store["stc_pred"]
    # a viewer colours classes by categories, not by text
    assert isinstance(prediction.obs["stc_class"].dtype, pd.CategoricalDtype)
    for path in re.findall(r"`((?:images|shapes|tables)/[^`]+)`", PAGE.read_text(encoding="utf-8")):
        assert Path("for_viewers.zarr", path).exists(), path
    assert names["shared"] == {"donor1_a"}
    exec(compile(blocks()[2], "viewers.md", "exec"), names)
    assert Path("donor1.geojson").stat().st_size > 1000


def test_vitessce_takes_the_store(names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Vitessce's dependencies
        vitessce = pytest.importorskip("vitessce", reason="vitessce is not installed")
        pytest.importorskip("starlette", reason='needs pip install "vitessce[all]"')
        exec(compile(blocks()[1], "viewers.md", "exec"), names)
        config = names["config"].to_dict(base_url="http://localhost")
        # Vitessce reads what it wrote
        again = vitessce.VitessceConfig.from_dict(config).to_dict()
        [wrapper] = [
            one
            for one in vitessce.SpatialDataWrapper.from_object(
                spatialdata.read_zarr("for_viewers.zarr"), {"stc_pred": "images/donor1_a_he", "table": None}
            )
            if one._expression_matrix == "tables/stc_pred/X"
        ]
    assert again["datasets"] == config["datasets"]
    [file] = config["datasets"][0]["files"]
    options = file["options"]
    # what Vitessce finds by itself is what the page tells
    assert wrapper._obs_spots_path == options["obsSpots"]["path"]
    assert options["obsSets"]["obsSets"][0]["path"] in wrapper._obs_set_elems
    for path in _paths(options):
        assert Path("for_viewers.zarr", path).exists(), path
    store = spatialdata.read_zarr("for_viewers.zarr")
    for part in ("image", "obsSpots"):
        assert options[part]["coordinateSystem"] in store.coordinate_systems
    assert set(store["stc_pred"].obs["region"]) == {options["obsSpots"]["region"]}


def _paths(options: Mapping[str, Any]) -> Iterator[str]:
    """All paths within a store that a configuration names."""
    for key, value in options.items():
        if key in {"path", "tablePath"}:
            yield value
        elif isinstance(value, dict):
            yield from _paths(value)
        elif isinstance(value, list):
            for item in value:
                yield from _paths(item)


@pytest.mark.usefixtures("names")
def test_napari_takes_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", os.environ.get("QT_QPA_PLATFORM", "offscreen"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of napari and its dependencies
        reason = "napari-spatialdata is not installed"
        viewers: Any = pytest.importorskip("napari_spatialdata._viewer", reason=reason)
        components: Any = pytest.importorskip("napari.components")
        events: Any = pytest.importorskip("napari.utils.events")
        store = spatialdata.read_zarr("for_viewers.zarr")
        viewer = viewers.SpatialDataViewer(components.ViewerModel(), events.EventedList([store]))
        image = viewer.get_sdata_image(store, "donor1_a_he", "donor1_a", multi=False)
        spots = viewer.get_sdata_circles(store, "donor1_a", "donor1_a", multi=False)
    assert "stc_pred" in spots.metadata["table_names"]
    np.testing.assert_array_equal(np.asarray(spots.metadata["adata"].X), np.asarray(store["stc_pred"].X))
    # the spots lie on the image: y before x
    low, high = (np.asarray(spots.data).min(axis=0), np.asarray(spots.data).max(axis=0))
    assert (low > 0).all()
    assert (high < image.extent.world[1][:2]).all()
