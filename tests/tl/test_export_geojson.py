"""GeoJSON of predictions is read back by shapely, in the pixels of the H&E."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from spatialdata.transformations import get_transformation_between_coordinate_systems

import stcontrast as stc
from tests.tl.conftest import copied


@pytest.fixture(scope="module")
def predicted(toy, model):
    sdata = copied(toy)
    stc.tl.predict_expression(sdata, model)
    stc.tl.classify(sdata, model)
    return sdata


def features(path):
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    return content["features"]


def test_spots_classes_and_genes(predicted, tmp_path):
    table, prediction = predicted["table"], predicted["stc_pred"]
    gene = str(prediction.var_names[3])
    stc.tl.export_geojson(predicted, tmp_path / "a.geojson", slide="donor3_a", genes=[gene])
    rows = np.flatnonzero((table.obs["region"] == "donor3_a").to_numpy())
    found = features(tmp_path / "a.geojson")
    assert len(found) == len(rows)
    shapes, image = predicted.shapes["donor3_a"], predicted.images["donor3_a_he"]
    to_pixels = get_transformation_between_coordinate_systems(predicted, shapes, image)
    matrix = to_pixels.to_affine_matrix(("x", "y"), ("x", "y"))
    scale = abs(np.linalg.det(matrix[:2, :2]))
    for feature, row in zip(found, rows, strict=True):
        polygon = shapely.geometry.shape(feature["geometry"])
        circle = shapes.loc[table.obs["spot_id"].iloc[row]]
        x, y, _ = matrix @ [circle.geometry.x, circle.geometry.y, 1.0]
        assert polygon.is_valid
        assert polygon.centroid.distance(shapely.Point(x, y)) < 0.05
        assert polygon.area == pytest.approx(np.pi * circle["radius"] ** 2 * scale, rel=0.02)
        assert feature["properties"]["classification"]["name"] == table.obs["stc_class"].iloc[row]
        of_spot = prediction.obs_names.get_loc(table.obs_names[row])
        assert feature["properties"]["measurements"][gene] == pytest.approx(float(prediction.X[of_spot, 3]), abs=1e-5)


def test_another_image_in_qupath(predicted, tmp_path):
    scale = predicted["table"].uns["stcontrast"]["um_per_px"]["donor1_a"]
    for name, um_per_px in (("own", None), ("finer", scale / 4)):
        stc.tl.export_geojson(predicted, tmp_path / f"{name}.json", slide="donor1_a", image_um_per_px=um_per_px)
    own, finer = (features(tmp_path / f"{name}.json")[7]["geometry"]["coordinates"] for name in ("own", "finer"))
    np.testing.assert_allclose(np.array(finer), 4 * np.array(own), atol=0.05)


def test_colours_of_the_table_are_those_of_the_classes(predicted, tmp_path):
    sdata = copied(predicted)
    classes = sdata["table"].obs["stc_class"].astype("category").cat.categories
    sdata["table"].uns["stc_class_colors"] = ["#ff0000", "#00ff00", "#0000ff", "#123456"][: len(classes)]
    stc.tl.export_geojson(sdata, tmp_path / "a.geojson", slide="donor1_a")
    colors = {
        f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"]
        for f in features(tmp_path / "a.geojson")
    }
    assert (
        colors.items()
        <= {
            str(classes[0]): [255, 0, 0],
            str(classes[1]): [0, 255, 0],
            str(classes[2]): [0, 0, 255],
            str(classes[-1]): [18, 52, 86],
        }.items()
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "has 3 slides, and a file holds one: give `slide`"),
        ({"slide": "x"}, KeyError, "No slide 'x'"),
        ({"slide": "donor1_a", "class_key": "x"}, KeyError, "No column 'x'"),
        ({"slide": "donor1_a", "genes": ["x"]}, KeyError, "'x'"),
    ],
    ids=["no slide", "another slide", "no column", "no gene"],
)
def test_what_is_absent_is_said_and_nothing_written(predicted, tmp_path, arguments, error, match):
    with pytest.raises(error, match=match):
        stc.tl.export_geojson(predicted, tmp_path / "a.geojson", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_told_to(predicted, tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        stc.tl.export_geojson(predicted, path, slide="donor1_a")
    assert path.read_text() == "mine"
    stc.tl.export_geojson(predicted, path, slide="donor1_a", overwrite=True)
    assert len(features(path)) == 40
    with pytest.raises(ValueError, match="must end in"):
        stc.tl.export_geojson(predicted, tmp_path / "a.txt", slide="donor1_a")


def test_nothing_to_write(toy, tmp_path):
    with pytest.raises(ValueError, match="Nothing to write"):
        stc.tl.export_geojson(copied(toy), tmp_path / "a.geojson", slide="donor1_a")
