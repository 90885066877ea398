"""Folders of models: whole or not there, and refused when anything in them was cut, changed or added."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stcontrast._files import read_folder, read_state, recover, write_folder, write_state, written_whole

if TYPE_CHECKING:
    from pathlib import Path

SPEC = {"genes": ["b", "a"], "score": 0.5, "nothing": None}
STATE: dict[str, Any] = {
    "weights": {"first": np.arange(6.0).reshape(2, 3).T, "point": np.array(3)},
    "name": np.array(["µm", "long name"]),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "plain": [1, "two"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", "Thing", SPEC, STATE, overwrite=False)
    return tmp_path / "model"


def test_what_was_written_is_read(folder: Path) -> None:
    spec, state = read_folder(folder, "Thing")
    assert spec == SPEC
    assert state["plain"] == [1, "two"]
    for one, other in ((state["weights"], STATE["weights"]), (state, STATE)):
        for name, value in other.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(one[name], value)
                assert one[name].dtype == value.dtype
                assert one[name].shape == value.shape


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1", "?"])
def test_the_order_in_memory_does_not_matter(tmp_path: Path, order: Any, dtype: str) -> None:
    value = np.array(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    write_state(tmp_path, {"part": {"x": value, "view": value[::2, ::-1]}})
    found = read_state(tmp_path)["part"]
    np.testing.assert_array_equal(found["x"], value)
    np.testing.assert_array_equal(found["view"], value[::2, ::-1])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def vanish(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def grow(file: Path) -> None:
    with file.open("rb+") as opened:
        opened.truncate(2**34)


def turn_pickle(file: Path) -> None:
    import pickle

    file.write_bytes(pickle.dumps({"a": 1}))


@pytest.mark.parametrize("name", ["model.json", "state.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", [cut, flip, vanish, empty, pipe, device, become_folder, grow, turn_pickle])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Any) -> None:
    damage(folder / name)
    if (name, damage) == ("model.json", vanish):
        with pytest.raises(FileNotFoundError, match=r"`model\.json` is absent"):
            read_folder(folder, "Thing")
        return
    with pytest.raises(ValueError, match=r"The model in '.*model' cannot be read: .*Copy it again") as caught:
        read_folder(folder, "Thing")
    if damage is not flip and damage is not turn_pickle and name != "model.json":
        assert name in str(caught.value)


def test_arrays_under_the_name_of_the_manifest_are_not_decoded(folder: Path) -> None:
    (folder / "model.json").write_bytes(np.random.default_rng(0).bytes(4_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"`model\.json` holds no JSON object"):
            read_folder(folder, "Thing")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_files_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """Also where they have the same size and belong together."""
    other = {**STATE, "weights": {**STATE["weights"], "first": STATE["weights"]["first"] + 1}}
    write_folder(tmp_path / "other", "Thing", SPEC, other, overwrite=False)
    for name in ("state.json", "arrays.safetensors"):
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(ValueError, match=r"`arrays\.safetensors` was changed after it was saved"):
        read_folder(folder, "Thing")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda head: head["spec"].update(genes=["a", "b"]), "was changed after it was saved", id="genes"),
        pytest.param(lambda head: head.update(format=5), "saved in format 5, by stcontrast", id="format"),
        pytest.param(lambda head: head.update(more=1), "more: Extra inputs", id="more"),
        pytest.param(lambda head: head["files"].clear(), "was changed", id="no files"),
        pytest.param(
            lambda head: head["files"].update({"../up.json": head["files"]["state.json"]}), "pattern", id="a path"
        ),
        pytest.param(lambda head: head.update(kind="Other"), "was changed", id="kind"),
    ],
)
def test_a_changed_manifest_is_refused(folder: Path, change: Any, match: str) -> None:
    head = json.loads((folder / "model.json").read_text())
    change(head)
    (folder / "model.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match=f"cannot be read: .*{match}"):
        read_folder(folder, "Thing")


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="it holds a Thing, not a Predictor"):
        read_folder(folder, "Predictor")


@pytest.mark.parametrize(("name", "number"), [("spec.json", 3), ("card.json", 1)])
def test_an_older_format_is_refused_by_its_number(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"saved in format {number} or older.*Fit it again"):
        read_folder(tmp_path, "Thing")


def test_only_a_model_and_nothing_else_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match="`overwrite=True` replaces"):
        write_folder(folder, "Thing", SPEC, STATE, overwrite=False)
    write_folder(folder, "Thing", {"new": 1}, STATE, overwrite=True)
    assert read_folder(folder, "Thing")[0] == {"new": 1}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not of a stcontrast model \(notes\.txt\)"):
        write_folder(folder, "Thing", SPEC, STATE, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    monkeypatch.chdir(folder)
    with pytest.raises(FileExistsError, match="is the working directory"):
        write_folder(".", "Thing", SPEC, STATE, overwrite=True)


@pytest.mark.parametrize("name", ["card.json", "model.json", "state.json"])
def test_a_folder_of_another_program_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text('{"theirs": 1}')
    (tmp_path / "theirs" / "data.bin").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="not of a stcontrast model"):
        write_folder(tmp_path / "theirs", "Thing", SPEC, STATE, overwrite=True)
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {name, "data.bin"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file: name a folder"):
        write_folder(tmp_path / "model", "Thing", SPEC, STATE, overwrite=True)
    assert (tmp_path / "model").read_text() == "mine"


def test_an_empty_folder_and_a_link_are_taken(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder(tmp_path / "link", "Thing", SPEC, STATE, overwrite=False)
    write_folder(tmp_path / "link", "Thing", {"new": 1}, STATE, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert read_folder(tmp_path / "real", "Thing")[0] == {"new": 1}


def test_what_a_killed_write_moved_aside_is_put_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The moment between the two moves, when nothing is at the place of the folder."""
    write_folder(tmp_path / "model", "Thing", SPEC, STATE, overwrite=False)
    beside = tmp_path / ".model.stcontrast-abc"
    beside.mkdir()
    (beside / "lock").touch()
    (tmp_path / "model").rename(beside / "old")
    assert read_folder(tmp_path / "model", "Thing")[0] == SPEC
    assert "the earlier content is restored" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with written_whole(tmp_path / "result") as scratch:
        scratch.write_text("new")
        recover(tmp_path / "result")
        assert scratch.exists()
    assert (tmp_path / "result").read_text() == "new"


FOR_EVER = """
import sys
import numpy as np
from stcontrast._files import write_folder
for i in range(10**6):
    write_folder(sys.argv[1], "Thing", {"number": i}, {"x": np.arange(1000.0), "plain": [1, "two"]}, overwrite=True)
    print(i, flush=True)
"""


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At random moments, the folder is there and whole, and the next write clears what was left."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        command = [sys.executable, "-c", FOR_EVER, str(tmp_path / "model")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        spec, state = read_folder(tmp_path / "model", "Thing")
        assert "number" in spec
        assert state["plain"] == [1, "two"]
    monkeypatch.setattr("stcontrast._files.whole.BEING_MADE", -1.0)
    write_folder(tmp_path / "model", "Thing", SPEC, STATE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
