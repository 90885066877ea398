from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import stcontrast as stc
from stcontrast.fitted import Predictor, TilePredictor
from stcontrast.methods.baselines import Depth
from tests.methods.quick import QUICK
from tests.slide_files import halved, write_slide

if TYPE_CHECKING:
    from pathlib import Path

zs = pytest.importorskip("lazyslide", reason="lazyslide is not installed")
FIELDS = (64.0, 128.0)


def fitted(method: str) -> Predictor:
    sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    return stc.tl.fit(sdata, batch_key="donor", method=method, field_um=FIELDS, options=QUICK[method])


@pytest.fixture(scope="module")
def ridge() -> Predictor:
    return fitted("ridge")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture of a toy slide, in which LazySlide finds tissue."""
    sdata = stc.datasets.toy(n_donors=1, n_spots=60, seed=1)
    pixels = np.moveaxis(next(iter(sdata.images.values()))["scale0"]["image"].to_numpy()[:3], 0, -1)
    return write_slide(tmp_path_factory.mktemp("slide") / "toy.tiff", [pixels, halved(pixels)], um_per_px=1.0)


@pytest.fixture
def wsi(file: Path) -> Any:
    opened = zs.open_wsi(file, store=None)
    zs.pp.find_tissues(opened)
    zs.pp.tile_tissues(opened, 100, mpp=1.0)
    return opened


def in_order(wsi: Any, table: str) -> np.ndarray:
    np.testing.assert_array_equal(wsi[table].obs["tile_id"], wsi["tiles"]["tile_id"])
    return np.asarray(wsi[table].X)


@pytest.mark.parametrize("method", ["ridge", "mlp"])
def test_lazyslide_predicts_what_the_model_predicts(method: str, ridge: Predictor, wsi: Any) -> None:
    model = ridge if method == "ridge" else fitted(method)
    predictor = TilePredictor(model)
    tiles = wsi["tiles"].copy()
    predictor.encode(wsi)
    zs.tl.feature_prediction(wsi, predictor, device="cpu", pbar=False, amp=True, compile=True)

    n = len(tiles)
    assert n > 20
    features = in_order(wsi, "stcontrast_features_tiles")
    centers = np.column_stack([wsi["tiles"].centroid.x, wsi["tiles"].centroid.y])
    expected = model.predict(features, slide=np.zeros(n, dtype=np.int64), xy=centers).expression
    assert expected is not None
    predicted = in_order(wsi, "stcontrast_tiles")
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    assert list(wsi["stcontrast_tiles"].var_names) == model.genes
    assert predicted.std(axis=0).max() > 0
    assert wsi["tiles"].equals(tiles)


def test_features_are_those_of_the_models_encoder_around_the_tiles(ridge: Predictor, wsi: Any) -> None:
    TilePredictor(ridge, name="mine").encode(wsi)
    features = in_order(wsi, "mine_features_tiles")
    pixels = wsi.read_region(0, 0, *wsi.properties.shape[::-1])
    centers = np.column_stack([wsi["tiles"].centroid.x, wsi["tiles"].centroid.y]).astype(int)
    inner = ((centers > 32) & (centers + 32 < pixels.shape[1::-1])).all(axis=1)
    assert inner.sum() > 20
    # at 1 µm a pixel, a field of 64 µm is the encoder's input as it lies in the file
    crops = np.stack([pixels[y - 32 : y + 32, x - 32 : x + 32] for x, y in centers[inner]])
    np.testing.assert_allclose(features[inner, :63], stc.pp.TextureEncoder()(crops), rtol=1e-4, atol=1e-5)
    assert wsi["mine_features_tiles"].uns["stcontrast"]["image_features"]["um_per_px"] == {"tiles": 1.0}


def test_the_features_can_be_used_by_the_tools_of_this_package(
    ridge: Predictor, wsi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TilePredictor(ridge)
    predictor.encode(wsi)
    zs.tl.feature_prediction(wsi, predictor, device="cpu", pbar=False)
    monkeypatch.setattr(stc.pp.TextureEncoder, "__call__", None)  # nothing is encoded again
    stc.tl.predict_expression(wsi, ridge, table_key="stcontrast_features_tiles")
    np.testing.assert_allclose(wsi["stc_pred"].X, in_order(wsi, "stcontrast_tiles"), rtol=1e-5, atol=1e-6)
    assert (wsi["stc_pred"].layers["upper"] >= wsi["stc_pred"].X).all()


def test_blocks_of_several_slots_are_made(wsi: Any) -> None:
    sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    stc.pp.image_features(sdata, field_um=FIELDS)
    stc.pp.image_features(sdata, encoder=["color", lambda x: x.max(axis=(1, 2))], field_um=64, key_added="X_two")
    model = stc.tl.fit(sdata, batch_key="donor", method="ridge", use_rep=["X_two", "X_image"])
    predictor = TilePredictor(model)
    with pytest.raises(ValueError, match="3 blocks of features that an encoder makes"):
        predictor.encode(wsi, encoder="color")
    for _ in range(2):
        predictor.encode(wsi, encoder=["color", lambda x: x.max(axis=(1, 2)), "texture"])
    table = wsi["stcontrast_features_tiles"]
    assert {key: table.obsm[key].shape[1] for key in ("X_two", "X_image")} == {"X_two": 38, "X_image": 126}
    np.testing.assert_array_equal(
        in_order(wsi, "stcontrast_features_tiles"), np.concatenate([table.obsm["X_two"], table.obsm["X_image"]], axis=1)
    )
    zs.tl.feature_prediction(wsi, predictor, device="cpu", pbar=False)
    stc.tl.predict_expression(wsi, model, table_key="stcontrast_features_tiles")
    np.testing.assert_allclose(wsi["stc_pred"].X, in_order(wsi, "stcontrast_tiles"), rtol=1e-5, atol=1e-6)


def test_a_saved_model_predicts_the_same(ridge: Predictor, wsi: Any, tmp_path: Path) -> None:
    ridge.save(tmp_path / "model")
    for name, model in (("here", ridge), ("again", stc.models.load(tmp_path / "model"))):
        predictor = stc.models.TilePredictor(model, name=name)
        predictor.encode(wsi)
        zs.tl.feature_prediction(wsi, predictor, device="cpu", pbar=False)
    np.testing.assert_array_equal(in_order(wsi, "here_tiles"), in_order(wsi, "again_tiles"))


def test_features_of_another_encoder_are_refused(ridge: Predictor, wsi: Any) -> None:
    from wsidata.io import add_features

    add_features(wsi, key="resnet_tiles", tile_key="tiles", features=np.zeros((len(wsi["tiles"]), 512)))
    with pytest.raises(ValueError, match="trained on 126 image features per spot, found 512"):
        zs.tl.feature_prediction(wsi, TilePredictor(ridge), "resnet", device="cpu", pbar=False)


def test_only_its_own_table_is_replaced(ridge: Predictor, wsi: Any) -> None:
    predictor = TilePredictor(ridge)
    predictor.encode(wsi)
    first = wsi["stcontrast_features_tiles"]
    predictor.encode(wsi, um_per_px=0.5)
    assert wsi["stcontrast_features_tiles"] is not first
    assert wsi["stcontrast_features_tiles"].uns["stcontrast"]["image_features"]["um_per_px"] == {"tiles": 0.5}
    del wsi["stcontrast_features_tiles"].uns["stcontrast"]
    with pytest.raises(ValueError, match=r"something else under 'stcontrast_features_tiles': give .* another `name`"):
        predictor.encode(wsi)


def test_features_that_only_the_user_can_make(ridge: Predictor, wsi: Any) -> None:
    given = {"slot": "X_image", "encoder": {"kind": "given", "name": "X_image", "n_features": 126}, "field_um": []}
    model = Predictor(ridge.method, {**ridge.spec, "image_features": [given]})
    with pytest.raises(ValueError, match=r"custom features.*`wsidata\.io\.add_features`"):
        TilePredictor(model).encode(wsi)


def test_neighbours_need_places(ridge: Predictor) -> None:
    with pytest.raises(ValueError, match=r"give `coords` \(3, 2\), found none"):
        TilePredictor(ridge).predict(np.zeros((3, 126)))
    with pytest.raises(ValueError, match=r"give `coords` \(3, 2\), found shape \(2, 2\)"):
        TilePredictor(ridge).predict(np.zeros((3, 126)), np.zeros((2, 2)))


def test_models_that_predict_no_expression_from_images(ridge: Predictor) -> None:
    with pytest.raises(ValueError, match=r"trained without counts.*`stc\.tl\.classify`"):
        TilePredictor(Predictor(ridge.method, {**ridge.spec, "genes": []}))
    with pytest.raises(ValueError, match="'depth' is an oracle"):
        TilePredictor(Predictor(Depth(), ridge.spec))


def test_lazyslide_recognises_it_as_a_model(ridge: Predictor) -> None:
    from lazyslide_models.base import FeaturePredictionModelProtocol

    predictor = TilePredictor(ridge)
    assert isinstance(predictor, FeaturePredictionModelProtocol)
    assert predictor.to("cpu") is predictor
    assert predictor.get_transform() is None
    assert repr(predictor) == "TilePredictor('ridge', 30 genes, name='stcontrast')"
