"""What a model or a store holds, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stcontrast._keys import UNS
from stcontrast._reading import Keys, resolve_all

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["about_model", "about_slides"]

SHOWN = 8


def about_model(folder: Path) -> str:
    """Method, genes, classes, donors, features and held-out scores of a saved model."""
    from stcontrast.models import load

    spec = load(folder).spec
    unit = spec.get("held_out_unit", "group")
    lines: dict[str, str] = {
        "model": f"{folder}, method {spec['method']}, seed {spec['seed']}",
        "genes": f"{len(spec['genes'])}: {_some(spec['genes'])}" if spec["genes"] else "none",
        "classes": ", ".join(spec["classes"]) or "none",
        "trained on": (
            f"{spec['n_spots_used']} of {spec['n_spots']} spots of {len(spec['slides'])} slides of the donors "
            f"{_some(spec['donors'])}"
        ),
        "features": "; ".join(
            f"{record['encoder']['name']} ({record['n_features']}) at {_numbers(record.get('field_um'))} µm"
            for record in spec["image_features"]
        ),
        "spots": "unknown distance" if not spec["spot_distance_um"] else f"{spec['spot_distance_um']:.4g} µm apart",
        **{
            name: f"{spec[name]:.3f} (held-out {unit}s of the training data)"
            for name in ("held_out_r", "held_out_macro_f1")
            if name in spec
        },
        "versions": ", ".join(f"{name} {version}" for name, version in spec["versions"].items()),
    }
    return _table(lines)


def about_slides(data: SpatialData | AnnData, *, table_key: str | None) -> str:
    """Slides, images, scale, genes and columns of a store."""
    [source] = resolve_all(data, Keys(table_key=table_key))
    table = source.table
    lines = {
        "spots": f"{table.n_obs} in {len(source.slides)} slides",
        "genes": f"{table.n_vars}: {_some(table.var_names)}" if table.n_vars else "none",
        "layers": ", ".join(map(str, table.layers)) or "none",
        "columns": ", ".join(map(str, table.obs)) or "none",
        "obsm": ", ".join(map(str, table.obsm)) or "none",
        "made by stcontrast": ", ".join(sorted(table.uns.get(UNS, {}))) or "nothing",
    }
    for slide in source.slides:
        scale = "µm per pixel unknown" if slide.um_per_px is None else f"{slide.um_per_px:.4g} µm per pixel"
        image = "no image" if slide.image is None else f"image {slide.image.name}"
        lines[f"slide {slide.name}"] = f"{len(slide.rows)} spots, {image}, {scale}"
    return _table(lines)


def _table(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {said}" for name, said in lines.items())


def _some(names: object) -> str:
    every = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def _numbers(values: object) -> str:
    return "?" if values is None else ", ".join(f"{value:g}" for value in values)  # type: ignore[attr-defined]
