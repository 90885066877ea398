"""Fine-tuning of the encoder before a method is fitted: crops, towers, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import numpy as np

from stcontrast._data import inner_folds
from stcontrast._keys import TUNED_FEATURES
from stcontrast._reading import require_images
from stcontrast.fitted._fit import training_spots
from stcontrast.methods._base import METHODS, get_method
from stcontrast.pp._encoders import TimmEncoder, resolve_encoders
from stcontrast.pp._features import FeatureSpec, encode_spots, warn_of_looks
from stcontrast.tl._features import describe, keep_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stcontrast._data import Spots
    from stcontrast._models.image_tower import TowerOptions, TunedEncoder
    from stcontrast._models.image_tower.batches import PairMethod
    from stcontrast._models.image_tower.crop_store import CropStore
    from stcontrast._reading import Sections
    from stcontrast.fitted._fit import FitSpec
    from stcontrast.pp._encoders import AnyEncoder, Encoder

__all__ = ["ImageTowerKind", "TunedFeatures", "Tuning", "check_image_tower"]

type ImageTowerKind = Literal["frozen", "finetune"]

DEFAULT_FIELDS_UM: Final = (200.0,)


@dataclass(frozen=True, slots=True)
class TunedFeatures:
    """Features by tuned encoders.

    Attributes
    ----------
    features
        Of all spots, by the encoder that was tuned on all training spots (n_spots, n_features).
    of_fold
        Of the training spots, for every inner fold by an encoder that was tuned without its held-out group.
    made_by
        What made them: one block.
    losses
        Of the encoder that was tuned on all training spots, a row for every epoch.
    """

    features: NDArray[np.float32]
    of_fold: tuple[NDArray[np.float32], ...]
    made_by: list[dict[str, Any]]
    losses: list[dict[str, float]]

    def in_folder(self, folder: Path) -> TunedFeatures:
        """The same in files of a folder: many folds' features need not fit in memory, and processes share them."""
        folder.mkdir(parents=True)
        paths = [folder / f"features{i}.npy" for i in range(1 + len(self.of_fold))]
        for path, features in zip(paths, (self.features, *self.of_fold), strict=True):
            np.save(path, features)
        first, *others = (np.load(path, mmap_mode="r") for path in paths)
        return TunedFeatures(first, tuple(others), self.made_by, self.losses)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to tune, checked.

    Attributes
    ----------
    base
        The encoder to start from.
    fields
        Fields of view in µm.
    options
        See :class:`~stcontrast.models.TowerOptions`.
    """

    base: TimmEncoder
    fields: tuple[float, ...]
    options: TowerOptions

    @classmethod
    def of(
        cls,
        encoder: AnyEncoder | Sequence[AnyEncoder] | None,
        fields: tuple[float, ...] | None,
        options: Mapping[str, Any] | None,
    ) -> Tuning:
        """From the user's arguments.

        Raises
        ------
        ValueError
            If the encoder is none that can be trained, there are several, or an option is unknown or out of range.
        """
        from stcontrast._models.image_tower import TowerOptions

        checked = TowerOptions.of(options)
        advice = (
            "Name a network of timm (`encoder='densenet121'`), or give `stc.pp.TimmEncoder(name, weights=...)` with "
            "weights of your own."
        )
        if encoder is None:
            msg = f"`image_tower='finetune'` needs an `encoder` to start from. {advice}"
            raise ValueError(msg)
        if isinstance(encoder, Sequence) and not isinstance(encoder, str) and len(encoder) > 1:
            msg = f"`image_tower='finetune'` trains one encoder, found {len(encoder)}. {advice}"
            raise ValueError(msg)
        [base] = resolve_encoders(encoder)
        if not isinstance(base, TimmEncoder):
            msg = f"The encoder {base.spec['name']!r} has no weights that could be fine-tuned. {advice}"
            raise ValueError(msg)
        return cls(base, fields or DEFAULT_FIELDS_UM, checked)

    @property
    def untuned(self) -> list[dict[str, Any]]:
        """What no features are made by: the fields, for baselines that look at the same ones without an encoder."""
        return self._made_by(self.base, 0)

    def _made_by(self, encoder: Encoder, n_features: int) -> list[dict[str, Any]]:
        spec = FeatureSpec(encoder, self.fields)
        return [{"slot": TUNED_FEATURES, **spec.record, "n_features": n_features}]

    def check_sources(self, sources: Sequence[Sections]) -> None:
        """Raise where an image is missing, or the slot of the tuned features holds something else."""
        for source in sources:
            require_images(source, self.fields)
            if TUNED_FEATURES not in source.table.obsm:
                continue
            if describe(source, TUNED_FEATURES)[0]["encoder"]["kind"] != "tuned":
                msg = (
                    f"`obsm[{TUNED_FEATURES!r}]` holds something that no fine-tuning of stcontrast made: rename it, as the "
                    "tuned features are written there."
                )
                raise ValueError(msg)

    def cut(self, sources: Sequence[Sections]) -> CropStore:
        """Crops of all spots; close them after use."""
        from stcontrast._models.image_tower import CropStore

        for source in sources:
            for slide in source.slides:
                warn_of_looks(slide)
        return CropStore.cut(sources, self.fields, self.base.size_px)

    def run(
        self, store: CropStore, spots: Spots, rows: NDArray[np.intp], fit_spec: FitSpec, *, method: str, name: str = ""
    ) -> tuple[TunedFeatures, TunedEncoder]:
        """Tune on some spots, and encode.

        Parameters
        ----------
        store
            Crops of all spots.
        spots
            All spots.
        rows
            Training spots: whole donors. Nothing of any other is learnt from.
        fit_spec
            How the method will be fitted.
        method
            Name of the method, for its own loss.
        name
            Folder of this training in `checkpoint_dir`; that one itself by default.

        Returns
        -------
        Features; and the encoder that made those of all spots.
        """
        from stcontrast._models.image_tower import CropRows
        from stcontrast._models.image_tower.cross_fit import cross_fit, encode

        data, crops = training_spots(spots, rows, fit_spec), CropRows(store, rows)
        options, kept = self.options, self.options.checkpoint_dir
        if kept is not None:
            options = replace(options, checkpoint_dir=Path(kept) / name)
        found = cross_fit(
            self.base, crops, data, inner_folds(data), options,
            center=fit_spec.standardize == "slide", seed=fit_spec.seed,
            method=partial(_pair_method, method, fit_spec) if options.loss == "method" else None,
        )  # fmt: skip
        features = encode(found.encoder, CropRows(store, np.arange(len(store))))
        of_fold = tuple(encode(encoder, crops) for encoder in found.of_fold)
        made_by = self._made_by(found.encoder, features.shape[1])
        return TunedFeatures(features, of_fold, made_by, found.losses["final"]), found.encoder

    def write(self, sources: Sequence[Sections], encoder: TunedEncoder) -> NDArray[np.float32]:
        """Write the features of all objects into their tables; all of them (n_spots, n_features).

        They are made as those of a new slide will be, in the same batches: a training slide is recognised by them.
        """
        parts = []
        for source in sources:
            features, record = encode_spots(source, [FeatureSpec(encoder, self.fields)])
            keep_features(source, features, record, TUNED_FEATURES)
            parts.append(features)
        return np.concatenate(parts)


def _pair_method(name: str, fit_spec: FitSpec) -> PairMethod:
    """A fresh method whose own loss trains the tower."""
    return cast("PairMethod", get_method(name, seed=fit_spec.seed, options=fit_spec.options))


def check_image_tower(
    image_tower: str,
    tower_options: Mapping[str, Any] | None,
    methods: Sequence[str],
    *,
    use_rep: str | Sequence[str] | None,
) -> bool:
    """Whether the encoder is to be fine-tuned.

    Raises
    ------
    ValueError
        If there is no such tower, options are given for a frozen one, slots of features for one that makes its own,
        none of the methods looks at an encoder, or one has no loss of its own that trains one and is to.
    """
    valid = get_args(ImageTowerKind.__value__)
    if image_tower not in valid:
        msg = f"Unknown `image_tower` {image_tower!r}. Valid options are {list(valid)}."
        raise ValueError(msg)
    if image_tower == "frozen":
        if tower_options is not None:
            msg = "`tower_options` are those of `image_tower='finetune'`; a frozen encoder has none."
            raise ValueError(msg)
        return False
    if use_rep is not None:
        msg = (
            f"`use_rep` is {use_rep!r}, and `image_tower='finetune'` learns from the images, not from existing "
            "features: leave out one of them."
        )
        raise ValueError(msg)
    asked = {name: get_method(name) for name in methods}
    others = [name for name, method in asked.items() if not (method.trains_tower or method.uses_color)]
    if (tower_options or {}).get("loss") == "method" and others:
        able = sorted(name for name, method in METHODS.items() if method.trains_tower)
        msg = (
            f"`tower_options={{'loss': 'method'}}`: {' and '.join(map(repr, others))} has no loss of its own that trains an "
            f"encoder; {', '.join(map(repr, able))} have one. Take one of these, or the loss 'joint'."
        )
        raise ValueError(msg)
    if all(method.uses_color for method in asked.values()):
        msg = f"{' and '.join(map(repr, methods))} uses colour alone and no encoder: there is nothing to fine-tune."
        raise ValueError(msg)
    return True
