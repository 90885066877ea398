"""`TilePredictor`: a fitted model for LazySlide, which predicts the expression of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from stcontrast._arguments import checked, one_of
from stcontrast._reading import add_tile_table, require_images, resolve_slides, tiles_alone
from stcontrast._records import read_record, write_record
from stcontrast.fitted._load import as_model
from stcontrast.pp._encoders import resolve_encoders
from stcontrast.pp._features import encode_spots, feature_spec, pair_encoders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    from stcontrast.fitted._model import Predictor
    from stcontrast.fitted._moments import StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder
    from stcontrast.pp._features import FeatureSpec

__all__ = ["TilePredictor"]


class TilePredictor:
    """A fitted model for :func:`lazyslide.tl.feature_prediction`.

    LazySlide gives a model the features and positions of all tiles. This predictor needs the features of the model's
    encoder at the model's fields of view. :meth:`encode` computes them around the centres of the tiles. As in
    training, features are standardised within the slide, and neighbouring tiles are used. The distance between tiles
    should be that of the training spots, because the model takes a fixed number of neighbours.

    Parameters
    ----------
    model
        From :func:`stcontrast.tl.fit` or :func:`stcontrast.models.load`.
    name
        Name of the results: features go to the table ``"{name}_features_{tile_key}"``, predictions to
        ``"{name}_{tile_key}"``.
    standardize
        As in :func:`stcontrast.tl.predict_expression`: ``"training"`` if the tiles cover only a part of the tissue.

    Attributes
    ----------
    model
        The fitted model.
    name
        Name of the results.
    standardize
        How image features are standardised.
    features_model_name
        Name of the features, which LazySlide looks up.
    needs_coords
        `True`: LazySlide passes the positions of the tiles.
    whole_slide
        `True`: LazySlide passes all tiles at once.

    Raises
    ------
    ValueError
        If the model predicts no expression, or needs the measured depth of a spot.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", method="ridge")
    >>> predictor = stc.models.TilePredictor(model)
    >>> predictor.features_model_name
    'stcontrast_features'

    With a slide:

    >>> import lazyslide as zs  # doctest: +SKIP
    >>> wsi = zs.open_wsi("slide.svs")  # doctest: +SKIP
    >>> zs.pp.find_tissues(wsi)  # doctest: +SKIP
    >>> zs.pp.tile_tissues(wsi, 200, mpp=0.5)  # doctest: +SKIP
    >>> predictor.encode(wsi)  # doctest: +SKIP
    >>> zs.tl.feature_prediction(wsi, predictor)  # doctest: +SKIP
    >>> wsi["stcontrast_tiles"].to_df()  # doctest: +SKIP
    """

    needs_coords: bool = True
    whole_slide: bool = True

    @checked(standardize=one_of("slide", "training"))
    def __init__(self, model: Predictor, *, name: str = "stcontrast", standardize: StandardizeBy = "slide") -> None:
        model = as_model(model)
        model.require_expression()
        if model.method.oracle:
            msg = f"The method {model.method.name!r} is an oracle: it needs measured counts, which tiles do not have."
            raise ValueError(msg)
        self.model = model
        self.name = name
        self.standardize: StandardizeBy = standardize
        self.features_model_name = f"{name}_features"

    def __repr__(self) -> str:
        return f"TilePredictor({self.model.method.name!r}, {len(self.model.genes)} genes, name={self.name!r})"

    def encode(
        self,
        wsi: SpatialData,
        *,
        tile_key: str = "tiles",
        encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
        um_per_px: float | None = None,
    ) -> None:
        """Compute the features that the model needs, for every tile.

        The crops are cut as in :func:`stcontrast.pp.image_features`: squares around the centres of the tiles, as wide
        as the model's fields of view. The size of a tile has no effect.

        Parameters
        ----------
        wsi
            A WSIData, from :func:`wsidata.open_wsi`.
        tile_key
            Its tiles, from :func:`lazyslide.pp.tile_tissues`.
        encoder
            Only for a model that was trained with a callable, because a callable is not saved with the model. For a
            model of several encoders, give all of them in a list, as in training.
        um_per_px
            µm per pixel of the finest level; by default the value in the file.

        Returns
        -------
        `None`. Adds the table ``"{name}_features_{tile_key}"``: features float32 (n_tiles, n_features) in ``X``, where
        LazySlide looks, and in ``obsm["X_image"]`` (or the slots of :func:`~stcontrast.tl.fit`'s `use_rep`), where this
        package does, with ``uns["stcontrast"]["image_features"]``. An older table of this kind is replaced.

        Raises
        ------
        TypeError
            If `wsi` is not a WSIData.
        KeyError
            If `wsi` has no such tiles.
        FileNotFoundError
            If the slide file does not exist any more.
        ValueError
            If µm per pixel is unknown, the encoder cannot be created again, or the name holds other data. All are
            raised before any work is done.
        """
        key = f"{self.features_model_name}_{tile_key}"
        alone = tiles_alone(wsi, tile_key)
        slots = wsi.tables[key].obsm if key in wsi.tables else ()
        ours = any(read_record(wsi.tables[key], "image_features", slot) is not None for slot in slots)
        if key in wsi and not ours:
            msg = f"The WSIData holds something else under {key!r}: give this predictor another `name`."
            raise ValueError(msg)
        made_by = self.model.spec["image_features"]
        if any(record["encoder"]["kind"] == "given" for record in made_by):
            msg = (
                "The model was trained on custom features, which only you can make: put them in a table "
                "of the tiles (`wsidata.io.add_features`) and name it with `feature_key`."
            )
            raise ValueError(msg)
        spots = resolve_slides(alone, table_key="table", um_per_px=um_per_px)
        require_images(spots, [field for block in made_by for field in block["field_um"]])
        paired = pair_encoders(made_by, None if encoder is None else resolve_encoders(encoder))
        specs: dict[str, list[FeatureSpec]] = {}
        for block, chosen in zip(made_by, paired, strict=True):
            spec = feature_spec(block, encoder=chosen, allow_download=self.model.allow_download)
            specs.setdefault(block["slot"], []).append(spec)
        found = {slot: encode_spots(spots, of_slot) for slot, of_slot in specs.items()}
        if ours:
            del wsi.tables[key]
        add_tile_table(wsi, key, tile_key, np.concatenate([features for features, _ in found.values()], axis=1))
        for slot, (features, record) in found.items():
            write_record(wsi.tables[key], "image_features", record, slot)
            wsi.tables[key].obsm[slot] = features

    def predict(self, features: ArrayLike, coords: ArrayLike | None = None) -> dict[str, NDArray[np.float32]]:
        """Predict the expression of all tiles of one slide.

        Parameters
        ----------
        features
            Features (n_tiles, n_features) as :meth:`encode` makes them.
        coords
            One corner, or the centre, of every tile (n_tiles, 2), in pixels.

        Returns
        -------
        log(1 + counts per 10 000) of every tile (n_tiles,), by gene.

        Raises
        ------
        ValueError
            If the positions are not given, or the number of features differs from that in training.
        """
        import torch

        values = np.asarray(features, dtype=np.float32)
        if coords is None or np.shape(coords) != (len(values), 2):
            found = "none" if coords is None else f"shape {np.shape(coords)}"
            msg = f"The model uses neighbouring tiles: give `coords` ({len(values)}, 2), found {found}."
            raise ValueError(msg)
        # LazySlide may have switched half precision on, which the methods were not made for
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            predicted = self.model.predict(
                values,
                slide=np.zeros(len(values), dtype=np.int64),
                xy=np.asarray(coords, dtype=np.float64),
                standardize=self.standardize,
                names=["of the tiles"],
            )
        return dict(zip(self.model.genes, predicted.expression.T, strict=True))

    def get_transform(self) -> None:
        """Nothing is done to tile images: the model takes features."""

    def to(self, device: object) -> Self:
        """Stay: the fitted method chooses its device itself."""
        return self

    def try_compile(self, **compile_kws: object) -> None:
        """Nothing to compile."""
