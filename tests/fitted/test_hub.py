"""Models on the Hugging Face hub, which is a folder here: its functions are replaced by ones of the same signature."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from inspect import signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import stcontrast as stc
from stcontrast.fitted._hub import card_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

    from stcontrast.models import Predictor

NAME = "my-lab/toy_model.v1"


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


class Hub:
    """Repositories as folders, with the functions of the hub that are used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.created: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def api(self, *args: Any, **kwargs: Any) -> Any:
        signature(HfApi).bind(*args, **kwargs)
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def raised(self) -> None:
        if self.error is not None:
            raise self.error

    def create_repo(self, *args: Any, **kwargs: Any) -> None:
        given = signature(HfApi.create_repo).bind(None, *args, **kwargs).arguments
        self.raised()
        self.created.append(given)
        (self.root / given["repo_id"]).mkdir(parents=True, exist_ok=given["exist_ok"])

    def upload_folder(self, **kwargs: Any) -> Any:
        given = signature(HfApi.upload_folder).bind(None, **kwargs).arguments
        target = self.root / given["repo_id"]
        for path in target.iterdir():
            if matches(path.name, given["delete_patterns"]):
                path.unlink()
        shutil.copytree(given["folder_path"], target, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{given['repo_id']}/commit/1")

    def snapshot_download(self, *args: Any, **kwargs: Any) -> str:
        given = signature(snapshot_download).bind(*args, **kwargs).arguments
        self.raised()
        for path in (self.root / given["repo_id"]).iterdir():
            if matches(path.name, given["allow_patterns"]):
                shutil.copy(path, given["local_dir"])
        return str(given["local_dir"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture(scope="module")
def slides() -> SpatialData:
    return stc.datasets.toy(n_donors=2, n_spots=40, n_genes=30)


@pytest.fixture(scope="module")
def model(slides: SpatialData) -> Predictor:
    return stc.tl.fit(slides, donor_key="donor", label_key="subtype", method="ridge")


def test_a_model_comes_back_as_it_was(hub: Hub, model: Predictor, slides: SpatialData) -> None:
    assert model.push_to_hub(NAME) == f"https://hub/{NAME}/commit/1"
    assert hub.created[0]["private"] is True
    again = stc.models.from_hub(NAME)
    assert again.model_id == model.model_id
    assert not again.allow_download
    table = slides["table"]
    of_spots = table.obsm["X_image"], table.obs["slide"].cat.codes.to_numpy(np.int64), table.obsm["spatial"]
    before, after = (one.predict(of_spots[0], slide=of_spots[1], xy=of_spots[2]) for one in (model, again))
    np.testing.assert_array_equal(before.expression, after.expression)


def test_the_card_says_what_the_model_is_and_names_no_donor_or_slide(hub: Hub, model: Predictor) -> None:
    model.push_to_hub(NAME, private=False)
    assert hub.created[0]["private"] is False
    text = (hub.root / NAME / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: stcontrast\n")
    assert f'model = stc.models.from_hub("{NAME}")' in text
    assert "the expression of 30 genes and 4 tissue subtypes (fat, glands, stroma, tumour)" in text
    assert "| Trained on donors | 2 |" in text
    assert "| Trained on slides | 2 |" in text
    assert "| Mean r on held-out data | " in text
    assert not any(name in text for name in [*model.spec["donors"], *model.spec["slides"]])
    for name in ("predict_expression", "classify"):
        assert f"stc.tl.{name}(sdata, model)" in text


def test_slides_that_gave_their_counts_alone_are_counted_and_not_named(model: Predictor) -> None:
    text = card_text({**model.spec, "gene_side": ["Mrs Smith", "Mr Smith"]}, NAME)
    assert "| Counts of further slides | 2 |" in text
    assert "Smith" not in text


def test_a_model_of_classes_alone_says_nothing_of_genes(hub: Hub, slides: SpatialData) -> None:
    table = slides["table"][:, :0].copy()
    labels = stc.tl.fit(table, donor_key="donor", label_key="subtype", method="ridge", library_key="slide")
    labels.push_to_hub(NAME)
    text = (hub.root / NAME / "README.md").read_text(encoding="utf-8")
    assert "Predicts 4 tissue subtypes" in text
    assert "predict_expression" not in text


def test_another_upload_leaves_no_file_of_the_one_before(hub: Hub, model: Predictor) -> None:
    model.push_to_hub(NAME)
    (hub.root / NAME / "old.safetensors").touch()
    (hub.root / NAME / "LICENSE").touch()
    model.push_to_hub(NAME)
    there = {path.name for path in (hub.root / NAME).iterdir()}
    assert there == {"README.md", "LICENSE", "model.json", "state.json", "arrays.safetensors"}


def test_what_was_changed_on_the_hub_is_refused(hub: Hub, model: Predictor) -> None:
    model.push_to_hub(NAME)
    file = hub.root / NAME / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed after it was saved"):
        stc.models.from_hub(NAME)


def test_a_repository_of_something_else_is_refused(hub: Hub) -> None:
    (hub.root / NAME).mkdir(parents=True)
    (hub.root / NAME / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"'{NAME}' holds no stcontrast model"):
        stc.models.from_hub(NAME)


@pytest.mark.parametrize("name", ["model", "a/b/c", "../model", "https://huggingface.co/a/b", "a b/c"])
def test_a_name_that_is_no_repository_is_refused_before_any_work(name: str, hub: Hub, model: Predictor) -> None:
    for call in (model.push_to_hub, stc.models.from_hub):
        with pytest.raises(ValueError, match=r"`repo_id` must be 'owner/name'"):
            call(name)
    assert hub.created == []


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("from the hub", response=SimpleNamespace(status_code=status, headers={}, request=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (answered(RepositoryNotFoundError, 404), ValueError, "There is no repository .*hf auth login"),
        (answered(GatedRepoError, 403), ValueError, "or you may not read it"),
        (answered(RevisionNotFoundError, 404), ValueError, "`revision`: .* no such branch, tag or commit"),
        (answered(HfHubHTTPError, 403), PermissionError, r"refuses access .*\(status 403\).*`token`"),
        (answered(HfHubHTTPError, 503), ConnectionError, r"\(status 503\): from the hub"),
        (LocalEntryNotFoundError("offline"), ConnectionError, "could not be reached .*offline"),
        (RuntimeError("no route"), ConnectionError, "could not be reached .*no route"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(
    error: Exception, kind: type[Exception], says: str, hub: Hub, model: Predictor
) -> None:
    hub.error = error
    calls: list[Callable[[str], object]] = [model.push_to_hub, stc.models.from_hub]
    for call in calls:
        with pytest.raises(kind, match=says):
            call(NAME)
