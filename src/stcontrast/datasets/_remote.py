"""Files of a public repository: downloaded once, checked at every use."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from stcontrast._files import file_sha256

__all__ = ["RemoteFile", "fetch", "read_registry"]

_ABSENT = (404, 410)


class RemoteFile(NamedTuple):
    """A file and the checksums of its content."""

    path: str
    """Address below the root of the repository."""
    git_blob: str
    """Id under which git stores the content (a SHA-1)."""
    sha256: str
    """SHA-256 of the content; empty where it is not known."""


def read_registry(name: str) -> dict[str, RemoteFile]:
    """Read the registry `name` of this package: a tab-separated table with the fields of `RemoteFile`."""
    lines = files("stcontrast.datasets").joinpath(name).read_text(encoding="utf-8").splitlines()
    entries = (RemoteFile(*line.split("\t")) for line in lines[1:])
    return {entry.path: entry for entry in entries}


def fetch(file: RemoteFile, *, source: str, cache: Path, progress: bool) -> Path:
    """Path of a local copy of a file, with checked content.

    Parameters
    ----------
    file
        The file.
    source
        Address or local folder of the root of the repository. A local folder is read in place.
    cache
        Folder for what is downloaded.
    progress
        Whether to show the progress of a download.

    Returns
    -------
    Path of the file, in `source` if this is a folder, else in `cache`.

    Raises
    ------
    FileNotFoundError
        If the source does not have the file.
    ValueError
        If the content differs from the registry. A download is deleted; a file in a local folder is not touched.
    OSError
        If the download fails for another reason.
    """
    if not source.startswith(("http://", "https://")):
        path = Path(source).expanduser() / file.path
        if not path.is_file():
            msg = f"{path} does not exist."
            raise FileNotFoundError(msg)
        _check(path, file)
        return path
    path = cache / file.path
    if path.exists():
        try:
            _check(path, file)
        except ValueError:
            path.unlink()
        else:
            return path
    _download(file, source=source, cache=cache, progress=progress)
    try:
        _check(path, file)
    except ValueError:
        path.unlink()
        raise
    return path


def _download(file: RemoteFile, *, source: str, cache: Path, progress: bool) -> None:
    import pooch
    import requests

    known = {file.path: f"sha256:{file.sha256}" if file.sha256 else None}
    downloads = pooch.create(path=cache, base_url=source.rstrip("/") + "/", registry=known)
    try:
        downloads.fetch(file.path, downloader=pooch.HTTPDownloader(progressbar=progress))
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code in _ABSENT:
            msg = f"{downloads.get_url(file.path)} does not exist."
            raise FileNotFoundError(msg) from error
        raise
    except requests.RequestException as error:
        msg = (
            f"Could not download {downloads.get_url(file.path)}: {error}. Where there is no network, give a copy of the "
            "repository as `mirror` or in the environment variable STCONTRAST_DATA_MIRROR."
        )
        raise OSError(msg) from error


def _check(path: Path, file: RemoteFile) -> None:
    if file.sha256:
        expected, found = file.sha256, file_sha256(path)
    else:
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
        blob.update(content)
        expected, found = file.git_blob, blob.hexdigest()
    if expected != found:
        msg = f"{path} is not the published file: its checksum is {found}, expected {expected}."
        raise ValueError(msg)
