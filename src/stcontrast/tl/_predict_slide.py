"""`predict_slide`: predict on whole-slide files in one call."""

from __future__ import annotations

import logging
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from stcontrast._arguments import FLAG, check_arguments, checked, one_of
from stcontrast._files import ResumableStore, content_hash, output_path, written_whole
from stcontrast._keys import PREDICTION_TABLE, UNS
from stcontrast._progress import stage
from stcontrast._reading import Keys, image_of_element, open_slide, resolve_all, slide_element, slide_um_per_px
from stcontrast._records import record_key
from stcontrast.fitted import as_model
from stcontrast.pp import tissue_grid
from stcontrast.pp._features import FeatureSpec, encode_on_disk, join_records, record_of
from stcontrast.pp._tissue.detect import overview
from stcontrast.tl._classify import classify
from stcontrast.tl._features import chosen_encoders, keep_features, plan_features
from stcontrast.tl._predict_expression import predict_expression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from spatialdata import SpatialData

    from stcontrast.fitted import Predictor, StandardizeBy
    from stcontrast.pp._encoders import AnyEncoder, Encoder
    from stcontrast.pp._tissue.lattice import Geometry

__all__ = ["predict_slide"]

logger = logging.getLogger(__name__)

TABLE: Final = "table"
# the distance of spots where the model does not know its own; and their diameter, as a share of it
PITCH_UM: Final = 100.0
DIAMETER: Final = 0.55
# a copy of the slide to look at has at most so many pixels along a side
PICTURE_PX: Final = 2048


@dataclass(frozen=True, slots=True)
class _File:
    """A slide: its name, its pixels as a lazy element, its scale, and what tells it from another file."""

    name: str
    image: Any
    um_per_px: float | None
    told_by: list[Any]


@checked(standardize=one_of("slide", "training"), tissue=one_of("detect", None), overwrite=FLAG)
@stage("predict_slide", whole=True)
def predict_slide(  # noqa: PLR0913
    slides: str | PathLike[str] | SpatialData | Sequence[str | PathLike[str] | SpatialData],
    model: Predictor | str | PathLike[str],
    *,
    out: str | PathLike[str] | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    pitch_um: float | None = None,
    spot_diameter_um: float | None = None,
    geometry: Geometry = "visium",
    min_tissue: float = 0.5,
    tissue: Literal["detect"] | None = "detect",
    encoder: AnyEncoder | Sequence[AnyEncoder] | None = None,
    standardize: StandardizeBy = "slide",
    overwrite: bool = False,
) -> SpatialData:
    """Predict expression and subtype on whole-slide files: tissue, spots, image features, prediction.

    Does in one call what :func:`stcontrast.pp.tissue_grid`, :func:`predict_expression` and :func:`classify` do one
    after another. The image stays in its file. It is read in tiles, only where there is tissue.

    Parameters
    ----------
    slides
        A file of a slide scanner (svs, ndpi, mrxs, tiff, ...), or an object of ``wsidata.open_wsi``, or a list of
        these. Needs ``wsidata``.
    model
        From :func:`fit` or :func:`stcontrast.models.load`, or the folder that the model was saved to.
    out
        SpatialData store (``.zarr``) to write the result to. If a call with `out` is interrupted, the same call
        continues it: unfinished work is in ``<out>.partial``. By default nothing is written.
    um_per_px
        µm per pixel of the finest level, a number, or a mapping from the name of a slide (its file without the ending)
        to a number. By default the value in the file.
    pitch_um
        Distance between neighbouring spots in µm. By default that of the training spots, or 100 if it is unknown.
    spot_diameter_um
        Diameter of the spots in µm; 0.55 of `pitch_um` by default.
    geometry, min_tissue
        As in :func:`stcontrast.pp.tissue_grid`.
    tissue
        ``"detect"``: lay spots on tissue only. `None`: everywhere, for a file that is filled with tissue.
    encoder, standardize
        As in :func:`predict_expression`.
    overwrite
        Replace an existing `out`, and start again instead of continuing an interrupted call.

    Returns
    -------
    The result, as it is written to `out`. For every slide it has a small copy of the image, ``<slide>_he``, for
    figures, and shapes, ``<slide>_spots``, in pixels of the file's finest level. Both are in a coordinate system named
    after the slide. ``"table"``: the spots, and the classes if the model has any. ``"stc_pred"``: expression, if the
    model has genes, as :func:`predict_expression` writes it. Image features are not kept, because they belong to the
    file.

    Raises
    ------
    FileExistsError
        If `out` exists and `overwrite` is False.
    FileNotFoundError
        If a slide or the model does not exist.
    ImportError
        If wsidata is not installed.
    KeyError
        If `um_per_px` names another slide.
    TypeError
        If a slide is neither a file nor a WSIData.
    ValueError
        If two slides have the same name, µm per pixel is unknown, a file cannot be read as a slide, there is no
        tissue, `out` does not end in ``.zarr``, or ``<out>.partial`` holds other work. All are raised before any spot
        is encoded.

    Examples
    --------
    >>> import stcontrast as stc
    >>> result = stc.tl.predict_slide("slide.svs", "model_dir", out="result.zarr")  # doctest: +SKIP
    >>> stc.pl.spatial_pred(result, "ERBB2")  # doctest: +SKIP
    """
    from spatialdata import read_zarr

    model = as_model(model)
    path = None
    if out is not None:
        path = output_path(out, "out", endings=(".zarr",), overwrite=overwrite, what="SpatialData store")
    if encoder is None:
        _refuse_own_features(model)
    files = _opened([slides] if not isinstance(slides, list | tuple) else slides)
    scales = _scales(files, um_per_px)
    # (the distance is measured: a lattice of 100 µm may have 99.9999)
    pitch_um = round(float(pitch_um or model.spec.get("spot_distance_um") or PITCH_UM), 3)
    diameter = round(DIAMETER * pitch_um, 3) if spot_diameter_um is None else float(spot_diameter_um)
    grid: dict[str, Any] = {
        "pitch_um": pitch_um,
        "spot_diameter_um": diameter,
        "geometry": geometry,
        "min_tissue": min_tissue,
        "tissue": tissue,
    }
    sdata = _container(files)
    chosen = chosen_encoders(model, encoder)
    with ExitStack() as stack:
        store = _store(path, stack, overwrite=overwrite, description={
            "model_id": model.model_id, "slides": [[file.name, *file.told_by] for file in files],
            "um_per_px": scales, "grid": grid,
        })  # fmt: skip
        with stage("tissue"):
            names = {f"{file.name}_he": f"{file.name}_spots" for file in files}
            tissue_grid(
                sdata, um_per_px={f"{name}_he": scale for name, scale in scales.items()}, table_key=TABLE,
                shapes_key=names, **grid,
            )  # fmt: skip
        _encode(sdata, model, store, chosen)
        given: dict[str, Any] = {"encoder": encoder, "standardize": standardize}
        if model.has_expression:
            with stage("predictions"):
                predict_expression(sdata, model, **given)
        if model.classes:
            with stage("subtypes"):
                classify(sdata, model, table_key=TABLE, **given)
        with stage("result"):
            result = _to_look_at(sdata, files)
            if path is not None:
                with written_whole(path) as scratch:
                    result.write(scratch)
                # where it lies now, and not where it was written
                result = read_zarr(path)
                logger.info("Wrote %s.", path)
        store.remove()
    return result


def _refuse_own_features(model: Predictor) -> None:
    own = [str(record["slot"]) for record in model.spec["image_features"] if record["encoder"]["kind"] == "given"]
    if own:
        msg = (
            f"The model was trained on custom features in {own}, which cannot be made from a file: make spots "
            "with `stc.pp.tissue_grid`, put the features there, and call `stc.tl.predict_expression`."
        )
        raise ValueError(msg)


def _opened(slides: Sequence[Any]) -> list[_File]:
    if not slides:
        msg = "`slides` is empty: name at least one file."
        raise ValueError(msg)
    files = []
    with stage("opening slides", total=len(slides), unit="slides") as bar:
        for item in slides:
            wsi = open_slide(item)
            [(name, image)] = slide_element(wsi).items()
            told_by = Path(wsi.reader.file).stat()
            files.append(
                _File(_name_of(name), image, slide_um_per_px(wsi), [told_by.st_size, round(told_by.st_mtime, 3)])
            )
            bar.update()
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"Several slides are called {twice}: rename the files, or predict them one by one."
        raise ValueError(msg)
    return files


def _name_of(file: str) -> str:
    """The name of a file without its ending, as an element of SpatialData may be called."""
    stem = "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in Path(file).stem)
    return stem.lstrip("_") or "slide"


def _scales(files: Sequence[_File], given: float | Mapping[str, float] | None) -> dict[str, float]:
    names = [file.name for file in files]
    if isinstance(given, float | int):
        scales: dict[str, float | None] = dict.fromkeys(names, float(given))
    else:
        if unknown := sorted(set(given or ()) - set(names)):
            msg = f"`um_per_px` names {unknown}; the slides are {names}."
            raise KeyError(msg)
        scales = {file.name: (given or {}).get(file.name, file.um_per_px) for file in files}
    if lost := [name for name, scale in scales.items() if scale is None]:
        msg = f"µm per pixel is unknown for {lost}: the files do not state it. Give `um_per_px`."
        raise ValueError(msg)
    known = {name: float(scale) for name, scale in scales.items() if scale is not None}
    check_arguments({"um_per_px": known})
    return known


def _container(files: Sequence[_File]) -> SpatialData:
    """All slides as lazy images, each in a coordinate system of its own."""
    from spatialdata import SpatialData as Container
    from spatialdata.transformations import Identity, set_transformation

    images = {f"{file.name}_he": file.image for file in files}
    for file in files:
        set_transformation(file.image, {file.name: Identity()}, set_all=True)
    return Container(images=images)


def _store(path: Path | None, stack: ExitStack, *, overwrite: bool, description: Mapping[str, Any]) -> ResumableStore:
    """The folder of what can be gone on with; a temporary one where nothing is to be written."""
    if path is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stcontrast-slide-")), "work")
    else:
        folder = path.with_name(f"{path.name}.partial")
        if overwrite and folder.exists() and not _in_use(folder):
            shutil.rmtree(folder)
    store = stack.enter_context(ResumableStore(folder, description, argument="out"))
    if store.resumed:
        logger.info("Continuing the work in %s.", folder)
    return store


def _in_use(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


def _encode(sdata: SpatialData, model: Predictor, store: ResumableStore, chosen: Sequence[Encoder] | None) -> None:
    """Make the image features that the model wants, and keep them in the table."""
    [source] = resolve_all(sdata, Keys(table_key=TABLE))
    [planned] = plan_features([source], model, chosen)
    spots = content_hash([part for slide in source.slides for part in (slide.name, slide.rows, slide.centers.round(3))])
    known = store.load("spots")
    if known is not None and str(known) != spots:
        # another version lays other spots
        store.discard(*(f"encoded{number}" for number in range(len(planned))))
        for file in store.folder.glob("features*.npy"):
            file.unlink()
    store.save("spots", np.array(spots))
    every = np.arange(source.table.n_obs)
    made = []
    for number, (record, spec) in enumerate(zip(model.spec["image_features"], planned, strict=True)):
        if not isinstance(spec, FeatureSpec):  # cannot happen: the table is new
            continue
        features = np.array(encode_on_disk(source, store, spec, number)[every])
        made.append((str(record["slot"]), features, record_of(source, spec, features)))
    for slot, blocks in groupby(made, key=lambda block: block[0]):
        _, parts, records = zip(*blocks, strict=True)
        keep_features(source, np.concatenate(parts, axis=1), join_records(records), slot)


def _to_look_at(sdata: SpatialData, files: Sequence[_File]) -> SpatialData:
    """The result with small copies of the images, to which scale and record of the slides are adapted."""
    from spatialdata import SpatialData as Container
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    images, factors = {}, {}
    for file in files:
        whole = image_of_element(file.image, file.name)
        factor = max(1, -(-max(whole.levels[0].shape[1:]) // PICTURE_PX))
        picture = np.moveaxis(overview(whole, factor), -1, 0)
        scale = Scale([float(factor)] * 2, axes=("x", "y"))
        images[f"{file.name}_he"] = Image2DModel.parse(
            picture, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={file.name: scale}
        )
        factors[f"{file.name}_spots"] = factor
    for key in {TABLE, PREDICTION_TABLE} & set(sdata.tables):
        table = sdata.tables[key]
        for slot in [slot for slot in table.obsm if record_key("image_features", slot) in table.uns.get(UNS, {})]:
            del table.obsm[slot]
            del table.uns[UNS][record_key("image_features", slot)]
        if scales := table.uns.get(UNS, {}).get("um_per_px"):
            table.uns[UNS]["um_per_px"] = {name: scale * factors[name] for name, scale in scales.items()}
    return Container(images=images, shapes=dict(sdata.shapes), tables=dict(sdata.tables))
