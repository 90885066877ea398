"""`export_geojson`: write predicted classes and expression as objects for QuPath."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stcontrast._arguments import NAME, POSITIVE, checked
from stcontrast._files import output_path, written_whole
from stcontrast._keys import CLASS, PREDICTION_TABLE
from stcontrast._predictions import PREDICTED, read_values
from stcontrast._reading import Keys, circle, resolve_slides, slide_outlines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stcontrast._reading import Sections, Slide

__all__ = ["export_geojson"]


@checked(image_um_per_px=POSITIVE, class_key=NAME, prediction_key=NAME, slide=NAME)
def export_geojson(  # noqa: PLR0913
    data: SpatialData | AnnData,
    path: str | PathLike[str],
    *,
    slide: str | None = None,
    class_key: str | None = None,
    genes: Sequence[str] | None = None,
    image_um_per_px: float | None = None,
    prediction_key: str = PREDICTION_TABLE,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the spots of a slide as GeoJSON, with predicted class and expression, for QuPath.

    In QuPath, open the slide and choose *File > Import objects from file*. Every spot becomes a detection with its
    class. The predicted genes become measurements, which can colour the spots (*Measure > Show measurement maps*).

    Parameters
    ----------
    data
        An object with predictions.
    path
        The file to write; its name ends in ``.geojson`` or ``.json``.
    slide
        Name of the slide. Required if the object has several.
    class_key
        Column of `obs` with the class. By default ``"stc_class"``, if it exists. Colours are those of
        ``uns[f"{class_key}_colors"]``, if any.
    genes
        Predicted genes to write as measurements, in log(1 + counts per 10 000).
    image_um_per_px
        µm per pixel of the image that is open in QuPath. By default the coordinates are pixels of the finest level of
        the H&E in the object. Give it if QuPath shows another image, such as the whole-slide file of
        :func:`predict_slide`, whose result has only a small copy.
    prediction_key
        Table with the prediction of a SpatialData.
    table_key, image_key, um_per_px, library_key
        As in :func:`stcontrast.pp.crops`.
    overwrite
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is False.
    KeyError
        If a slide, column, gene or prediction is absent. The message lists those that exist.
    ValueError
        If the object has several slides and none is named, there is nothing to write, the name of the file has another
        ending, or `image_um_per_px` is given and the scale of the slide is unknown.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)
    >>> model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", method="ridge")
    >>> stc.tl.classify(sdata, model)
    >>> stc.tl.export_geojson(sdata, "donor1.geojson", slide="donor1_a", genes=["GENE1"])  # doctest: +SKIP
    """
    place = output_path(path, "path", endings=(".geojson", ".json"), overwrite=overwrite)
    values: dict[str, NDArray[np.float64]] = {}
    if genes:
        keys = Keys(table_key=table_key, image_key=image_key, um_per_px=um_per_px, slide_key=library_key)
        [found] = read_values([data], list(genes), [PREDICTED], keys, prediction_key=prediction_key)
        source, values = found.source, {gene: found.of[gene, PREDICTED] for gene in genes}
    else:
        source = resolve_slides(
            data, table_key=table_key, image_key=image_key, um_per_px=um_per_px, library_key=library_key
        )
    chosen = _chosen(source, slide)
    factor = _factor(chosen, image_um_per_px)
    classes = _classes(source.table, class_key)
    if classes is None and not values:
        msg = (
            f"Nothing to write: there is no class in `obs[{CLASS!r}]`, and no `genes` are given. Call `stc.tl.classify`, give "
            "`class_key`, or name genes."
        )
        raise ValueError(msg)
    content = {
        "type": "FeatureCollection",
        "features": list(_features(source, chosen, factor, classes=classes, values=values, key=class_key or CLASS)),
    }
    with written_whole(place) as file:
        file.write_text(json.dumps(content))


def _chosen(source: Sections, name: str | None) -> Slide:
    names = [slide.name for slide in source.slides]
    if name is None and len(names) > 1:
        msg = f"The object has {len(names)} slides, and a file holds one: give `slide`, one of {names[:10]}."
        raise ValueError(msg)
    if name is not None and name not in names:
        msg = f"No slide {name!r}; the slides are {names[:10]}."
        raise KeyError(msg)
    return source.slides[0 if name is None else names.index(name)]


def _factor(slide: Slide, image_um_per_px: float | None) -> float:
    """Pixels of the image in QuPath for a unit of the slide's centres."""
    if image_um_per_px is None:
        return 1.0
    if slide.um_per_px is None:
        msg = (
            f"Slide {slide.name!r}: its µm per pixel is unknown, so `image_um_per_px` cannot be used. Give `um_per_px`."
        )
        raise ValueError(msg)
    return slide.um_per_px / image_um_per_px


def _classes(table: AnnData, key: str | None) -> pd.Series[Any] | None:
    if key is None and CLASS not in table.obs:
        return None
    key = CLASS if key is None else key
    if key not in table.obs:
        msg = f"No column {key!r} in `obs`; its columns are {sorted(table.obs.columns)}."
        raise KeyError(msg)
    return table.obs[key].astype("category")


def _features(
    source: Sections,
    slide: Slide,
    factor: float,
    *,
    classes: pd.Series[Any] | None,
    values: Mapping[str, NDArray[np.float64]],
    key: str,
) -> Iterator[dict[str, Any]]:
    outlines = slide_outlines(source, slide)
    colors = _colors(source.table, classes, key)
    for i, row in enumerate(slide.rows.tolist()):
        corners = (circle(slide.centers[i], slide.diameter) if outlines is None else outlines[i]) * factor
        ring = np.round(np.vstack([corners, corners[:1]]), 2).tolist()
        properties: dict[str, Any] = {"objectType": "detection", "name": str(source.table.obs_names[row])}
        if classes is not None and not pd.isna(classes.iloc[row]):
            name = str(classes.iloc[row])
            properties["classification"] = {"name": name} | ({"color": colors[name]} if name in colors else {})
        measured = {gene: float(numbers[row]) for gene, numbers in values.items() if np.isfinite(numbers[row])}
        if measured:
            properties["measurements"] = measured
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": properties,
        }


def _colors(table: AnnData, classes: pd.Series[Any] | None, key: str) -> dict[str, list[int]]:
    """Red, green and blue (0 to 255) of the classes that have a colour."""
    if classes is None or f"{key}_colors" not in table.uns:
        return {}
    from matplotlib.colors import to_rgb

    given = zip(classes.cat.categories, table.uns[f"{key}_colors"], strict=False)
    return {str(name): [round(255 * part) for part in to_rgb(color)] for name, color in given}
