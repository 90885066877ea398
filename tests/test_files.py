"""Hashes, files that appear whole, and work that is resumed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from stcontrast._files import ResumableStore, RowsFile, content_hash, file_sha256, written_whole


def test_a_content_hash_tells_values_apart():
    values = [
        None, 1, 1.5, True, "1", ["a", "b"], ["ab"], [["a"], "b"], {"a": 1}, {"a": 2}, {"b": 1}, np.arange(3),
        np.arange(3.0), np.arange(4).reshape(2, 2), np.arange(4), np.array(["1"]), np.array([None, "1"], dtype=object),
    ]  # fmt: skip
    assert len({content_hash([value]) for value in values}) == len(values)
    assert content_hash(["a", "b"]) != content_hash(["ab"])
    assert content_hash([np.arange(2), np.arange(2)]) != content_hash([np.arange(2), np.arange(3)])


def test_a_content_hash_does_not_depend_on_layout_or_order():
    array = np.arange(6.0).reshape(2, 3)
    assert content_hash([array]) == content_hash([np.asfortranarray(array)])
    assert content_hash([array[:, ::2]]) == content_hash([array[:, ::2].copy()])
    assert content_hash([{"a": 1, "b": 2}]) == content_hash([{"b": 2, "a": 1}])
    assert content_hash(row for row in array) == content_hash([array[0], array[1]])


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "new" / "result"

    def write(text):
        with written_whole(path) as scratch:
            if kind == "folder":
                scratch.mkdir()
            (scratch / "part" if kind == "folder" else scratch).write_text(text)
            if text == "broken":
                raise KeyboardInterrupt

    def read():
        return (path / "part" if kind == "folder" else path).read_text()

    with pytest.raises(KeyboardInterrupt):
        write("broken")
    assert not path.exists()
    write("one")
    assert read() == "one"
    with pytest.raises(KeyboardInterrupt):
        write("broken")
    assert read() == "one"
    write("two")
    assert read() == "two"
    assert [item.name for item in path.parent.iterdir()] == ["result"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_block_that_writes_nothing_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "result"
    if kind == "file":
        path.write_text("old")
    else:
        path.mkdir()
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.is_file() == (kind == "file")
    assert [item.name for item in tmp_path.iterdir()] == ["result"]


def test_a_store_is_resumed_for_the_same_work_only(tmp_path):
    description = {"seed": 1, "fields": (55.0, 110.0)}
    first = ResumableStore(tmp_path / "new" / "store", description, argument="directory")
    assert not first.resumed
    assert first.load("scores") is None
    assert not first.flags("done", 3).any()
    first.save("scores", np.arange(3.0))
    first.save("done", np.array([True, False, True]))
    first.release()
    again = ResumableStore(first.folder, description, argument="directory")
    assert again.resumed
    np.testing.assert_array_equal(again.load("scores"), np.arange(3.0))
    np.testing.assert_array_equal(again.flags("done", 3), [True, False, True])
    again.release()
    for other in ({"seed": 2, "fields": [55.0, 110.0]}, {"fields": (55.0, 110.0)}):
        with pytest.raises(ValueError, match=r"`directory`: .* differs in \['seed'\] \(seed: found 1, now (2|None)\)"):
            ResumableStore(first.folder, other, argument="directory")


def test_rows_in_a_file(tmp_path):
    file = RowsFile(tmp_path / "rows.npy", n_rows=4)
    file.write(np.array([3, 1]), np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    file.write(np.array([0]), np.array([[5.0, 6.0]], dtype=np.float32))
    np.testing.assert_array_equal(file[np.array([0, 1, 2, 3])], [[5, 6], [3, 4], [0, 0], [1, 2]])


def test_a_store_has_one_writer(tmp_path):
    told = rf"`store`: process {os.getpid()} on .* works in .*give another"
    with (
        ResumableStore(tmp_path / "store", {"a": 1}, argument="store"),
        pytest.raises(BlockingIOError, match=told),
    ):
        ResumableStore(tmp_path / "store", {"a": 1}, argument="store")
    with pytest.raises(ValueError, match="differs"):
        ResumableStore(tmp_path / "store", {"a": 2}, argument="store")
    with ResumableStore(tmp_path / "store", {"a": 1}, argument="store") as again:
        assert again.resumed
        again.save("done", np.ones(2, dtype=bool))
        again.discard("done")
        assert again.load("done") is None
        again.remove()
    assert not (tmp_path / "store").exists()
