"""`her2st`: HER2-positive breast cancer of Andersson et al. (2021)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from stcontrast._keys import UNS
from stcontrast.datasets._remote import RemoteFile, fetch, read_registry

if TYPE_CHECKING:
    from collections.abc import Iterable

    import PIL.Image
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["her2st"]

_logger = logging.getLogger(__name__)

_SOURCE: Final = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec"
_PITCH_UM: Final = 200.0
_SPOT_RADIUS_UM: Final = 50.0
_NO_CLASS: Final = "undetermined"
_N_LEVELS: Final = 4
_CHUNKS: Final = (3, 1024, 1024)


class _SectionFiles(NamedTuple):
    counts: Path
    spots: Path
    labels: Path | None
    image: Path | None


def her2st(
    sections: str | Iterable[str] | None = None,
    *,
    mirror: str | Path | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Load the HER2-positive breast cancer data of Andersson et al.

    Eight patients (A to H), 36 sections, measured by the first generation of spatial transcriptomics: spots of 100 µm
    on a square lattice of 200 µm pitch. A pathologist annotated one section of each patient. Files are downloaded once
    into `stcontrast.settings.data_dir`, and checked against the checksums of the published files.

    Parameters
    ----------
    sections
        Sections to load, such as `("C2", "C3")`, or one such as `"C2"`; all 36 by default. A section with its image
        takes about 0.3 GB of memory.
    mirror
        Address or local folder to read from instead of the original repository, with the same paths below it. A local
        folder is read in place. Default: `stcontrast.settings.data_mirror`; if this is empty, the repository.
    progress
        Whether to show progress bars. Default: `stcontrast.settings.progress`.

    Returns
    -------
    For each section `S` circles `S` and, if the source has it, the H&E image `S_he` (uint8 RGB, four scales), both in
    a coordinate system `S` whose unit is the pixel of the image; a section whose image is absent, or too small for its
    spot positions, is loaded without one and a warning is logged. One table, `table`:

    `X`
        Raw counts, CSR float32, spots × genes: the spots that have both counts and a position, and all genes that any
        of the sections lists (a section lists the genes that were seen in it, so others are zero there).
    `obs`
        `donor` (letter), `slide` (section), `subtype` (the pathologist's class; missing if there is none, or if it is
        "undetermined"), `array_x`, `array_y` (position on the lattice), `region` and `spot_id` (keys of the circles).
    `obsm["spatial"]`
        Spot centres, x and y, in pixels of the image.
    `uns["stcontrast"]["um_per_px"]`
        Section to µm per pixel, from the median distance of spots that are neighbours on the lattice.

    Raises
    ------
    ValueError
        If a section does not exist, or a file differs from the published one.
    FileNotFoundError
        If counts or spot positions are missing in the source.
    OSError
        If the source cannot be reached.

    Notes
    -----
    Sequencing depth differs by more than ten times between patients. The data are described in `Andersson et al.,
    Nature Communications 12, 6012 (2021) <https://doi.org/10.1038/s41467-021-26271-2>`_ and published at
    https://github.com/almaan/her2st.

    Examples
    --------
    >>> import stcontrast as stc
    >>> sdata = stc.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    >>> sdata["table"].obs["donor"].unique().tolist()  # doctest: +SKIP
    ['C']
    """
    from spatialdata import SpatialData

    from stcontrast._progress import shows_progress, steps
    from stcontrast._settings import settings

    registry = read_registry("her2st.tsv")
    chosen = _choose(sections, registry)
    show = shows_progress() if progress is None else progress
    source = str(mirror or settings.data_mirror or _SOURCE)
    cache = settings.data_dir / "her2st"
    located = {s: _locate(s, registry, source=source, cache=cache, progress=show) for s in chosen}

    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    tables: list[AnnData] = []
    um_per_px: dict[str, float] = {}
    for section, paths in steps(located.items(), "reading her2st", unit="sections"):
        table = _read_table(section, paths)
        pitch = _pitch_px(table)
        um_per_px[section] = _PITCH_UM / pitch
        tables.append(table)
        shapes[section] = _circles(table, radius=_SPOT_RADIUS_UM / um_per_px[section], section=section)
        image = None if paths.image is None else _read_image(paths.image, table.obsm["spatial"], section=section)
        if image is not None:
            images[f"{section}_he"] = image
    return SpatialData(images=images, shapes=shapes, tables={"table": _join(tables, um_per_px)})


def _choose(sections: str | Iterable[str] | None, registry: dict[str, RemoteFile]) -> list[str]:
    available = [Path(path).name.split(".")[0] for path in registry if path.startswith("data/ST-cnts/")]
    if sections is None:
        return available
    chosen = [sections] if isinstance(sections, str) else list(dict.fromkeys(sections))
    unknown = [section for section in chosen if section not in available]
    if unknown or not chosen:
        problem = f"There is no section {', '.join(map(repr, unknown))}" if unknown else "No section is given"
        msg = f"{problem}; available: {', '.join(available)}."
        raise ValueError(msg)
    return chosen


def _locate(
    section: str, registry: dict[str, RemoteFile], *, source: str, cache: Path, progress: bool
) -> _SectionFiles:
    def get(path: str) -> Path:
        return fetch(registry[path], source=source, cache=cache, progress=progress)

    counts = get(f"data/ST-cnts/{section}.tsv.gz")
    spots = get(f"data/ST-spotfiles/{section}_selection.tsv")
    labels = image = None
    labels_path = f"data/ST-pat/lbl/{section}_labeled_coordinates.tsv"
    if labels_path in registry:
        try:
            labels = get(labels_path)
        except FileNotFoundError as error:
            _logger.info("Section %s is loaded without the pathologist's classes: %s", section, error)
    image_path = next(path for path in registry if path.startswith(f"data/ST-imgs/{section[0]}/{section}/"))
    try:
        image = get(image_path)
    except FileNotFoundError as error:
        _logger.warning("Section %s is loaded without its image: %s", section, error)
    return _SectionFiles(counts, spots, labels, image)


def _read_table(section: str, paths: _SectionFiles) -> AnnData:
    from anndata import AnnData

    counts = pd.read_csv(paths.counts, sep="\t", index_col=0)
    spots = pd.read_csv(paths.spots, sep="\t")
    spots.index = pd.Index(spots["x"].astype(str) + "x" + spots["y"].astype(str))
    spots = spots.loc[spots.index.isin(counts.index)]
    obs = pd.DataFrame(
        {
            "donor": section[0],
            "slide": section,
            "subtype": None if paths.labels is None else _read_labels(paths.labels).reindex(spots.index),
            "array_x": spots["x"],
            "array_y": spots["y"],
            "region": section,
            "spot_id": spots.index,
        }
    )
    obs.index = section + "_" + obs.index
    return AnnData(
        csr_matrix(counts.loc[spots.index].to_numpy(dtype=np.float32)),
        obs=obs,
        var=pd.DataFrame(index=counts.columns),
        obsm={"spatial": spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)},
    )


def _read_labels(path: Path) -> pd.Series:
    # the pixel positions of this file refer to another image; its lattice positions are not exactly whole numbers
    labels = pd.read_csv(path, sep="\t").dropna(subset=["x", "y"])
    position = labels[["x", "y"]].round().astype(int).astype(str)
    label = labels["label"].where(labels["label"] != _NO_CLASS, None)
    label = label.set_axis(position["x"] + "x" + position["y"])
    return label[~label.index.duplicated()]


def _pitch_px(table: AnnData) -> float:
    lattice = table.obs[["array_x", "array_y"]].to_numpy()
    one, other = cKDTree(lattice).query_pairs(1.01, output_type="ndarray").T
    centres = table.obsm["spatial"]
    return float(np.median(np.hypot(*(centres[one] - centres[other]).T)))


def _circles(table: AnnData, *, radius: float, section: str) -> Any:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    return ShapesModel.parse(
        table.obsm["spatial"],
        geometry=0,
        radius=radius,
        index=table.obs["spot_id"].to_numpy(),
        transformations={section: Identity()},
    )


def _read_image(path: Path, centres: NDArray[np.float64], *, section: str) -> Any:
    from PIL import Image
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    limit = Image.MAX_IMAGE_PIXELS
    # these slides are larger than Pillow's limit against attacks; their content has been checked
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as picture:
            if (np.array(picture.size) < centres.max(axis=0)).any():
                _logger.warning(
                    "Section %s is loaded without its image: %s has %d×%d pixels, but spots lie up to x=%.0f, y=%.0f; "
                    "it is a reduced copy of the image that they were measured on.",
                    *(section, path.name, *picture.size, *centres.max(axis=0)),
                )
                return None
            full = picture.convert("RGB")
            levels = [_as_dask(full), *(_as_dask(full.reduce(2**k)) for k in range(1, _N_LEVELS))]
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    image = Image2DModel.parse(
        levels[0],
        dims=("c", "y", "x"),
        c_coords=("r", "g", "b"),
        scale_factors=[2] * (_N_LEVELS - 1),
        chunks=_CHUNKS,
        transformations={section: Identity()},
    )
    # otherwise every read of a coarse level would average the full resolution again
    for k, level in enumerate(levels[1:], start=1):
        node = image[f"scale{k}"]
        _, height, width = node["image"].shape
        node.dataset = node.to_dataset().assign(image=node["image"].copy(data=level[:, :height, :width]))
    return image


def _as_dask(picture: PIL.Image.Image) -> Any:
    import dask.array as da

    # name=False: hashing 0.3 GB for a name takes longer than decoding the picture.
    return da.from_array(np.asarray(picture).transpose(2, 0, 1), chunks=_CHUNKS, name=False)


def _join(tables: list[AnnData], um_per_px: dict[str, float]) -> AnnData:
    from anndata import concat
    from spatialdata.models import TableModel

    table = concat(tables, join="outer", fill_value=0)
    for column in ("donor", "slide", "region"):
        table.obs[column] = pd.Categorical(table.obs[column], categories=table.obs[column].unique())
    table.obs["subtype"] = pd.Categorical(table.obs["subtype"])
    table.uns[UNS] = {"um_per_px": um_per_px}
    return TableModel.parse(table, region=list(um_per_px), region_key="region", instance_key="spot_id")
