"""Hashes of content, files that appear whole or not at all, folders of interrupted work, folders of models."""

from __future__ import annotations

from stcontrast._files.content import content_hash, file_sha256
from stcontrast._files.model_folder import (
    ARRAYS,
    MODEL,
    holds_model,
    read_folder,
    read_state,
    unreadable,
    write_folder,
    write_state,
)
from stcontrast._files.store import ResumableStore, RowsFile
from stcontrast._files.whole import output_path, recover, written_whole

__all__ = [
    "ARRAYS",
    "MODEL",
    "ResumableStore",
    "RowsFile",
    "content_hash",
    "file_sha256",
    "holds_model",
    "output_path",
    "read_folder",
    "read_state",
    "recover",
    "unreadable",
    "write_folder",
    "write_state",
    "written_whole",
]
