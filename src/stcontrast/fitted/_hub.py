"""The Hugging Face hub: files of a model up, with a model card, and down, without running anything."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stcontrast.fitted._report import card_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["card_text", "downloaded", "upload"]

CARD: Final = "README.md"
# files of a model folder; nothing else in a repository is downloaded
FILES: Final = ["*.json", "*.safetensors"]
TAGS: Final = ("spatial-transcriptomics", "histology", "gene-expression", "single-cell")

PAGE: Final = """---
library_name: stcontrast
tags:
{tags}
---

# {title}

Predicts {what} from H&E. Trained with stcontrast, method `{method}`.

```python
import stcontrast as stc

model = stc.models.from_hub("{repo_id}")
{call}
```

| | |
|---|---|
{rows}

Scores within the training data say little about tissue, stains and scanners that the model has not seen: check it on
measured slides of your own first (`stc.tl.cross_validate` compares methods on held-out donors). Not for diagnosis.
"""


def card_text(spec: Mapping[str, Any], repo_id: str) -> str:
    """The model card (Markdown) of a model in a repository. It names no donor and no slide."""
    genes, classes = spec["genes"], spec["classes"]
    what = [f"the expression of {len(genes)} genes"] if genes else []
    calls = ["stc.tl.predict_expression(sdata, model)"] if genes else []
    if classes:
        what.append(f"{len(classes)} tissue subtypes ({', '.join(classes)})")
        calls.append("stc.tl.classify(sdata, model)")
    return PAGE.format(
        tags="\n".join(f"- {tag}" for tag in TAGS), title=repo_id.partition("/")[2], what=" and ".join(what),
        method=spec["method"], repo_id=repo_id, call="\n".join(calls),
        rows="\n".join(f"| {name} | {text.replace('|', '/')} |" for name, text in card_of(spec, names=False)),
    )  # fmt: skip


def upload(
    save: Callable[[Path], None], card: str, repo_id: str, *, private: bool, token: str | None, commit_message: str
) -> str:
    """Upload the files that `save` writes, with a model card; see :meth:`stcontrast.models.Predictor.push_to_hub`."""
    from huggingface_hub import HfApi

    _check_repository(repo_id)
    hub = HfApi(token=token, library_name="stcontrast")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        with _reached(repo_id):
            hub.create_repo(repo_id, private=private, exist_ok=True)
            done = hub.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=FILES
            )
    return str(done.commit_url)


@contextmanager
def downloaded(repo_id: str, *, revision: str | None, token: str | None) -> Iterator[Path]:
    """A folder with the files of a model in a repository, until the end of a ``with`` block; see :func:`from_hub`."""
    from huggingface_hub import snapshot_download

    _check_repository(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        with _reached(repo_id):
            snapshot_download(
                repo_id, revision=revision, token=token, local_dir=scratch, allow_patterns=FILES,
                library_name="stcontrast",
            )  # fmt: skip
        yield Path(scratch)


def _check_repository(repo_id: str) -> None:
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id) is None:
        msg = f"`repo_id` must be 'owner/name', as on the Hugging Face hub; found {repo_id!r}."
        raise ValueError(msg)


@contextmanager
def _reached(repo_id: str) -> Iterator[None]:
    """Turn the errors of the hub into those that say what to do."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    log_in = "Run `hf auth login` on this machine, or give `token`."
    try:
        yield
    except RevisionNotFoundError as error:
        msg = f"`revision`: the repository {repo_id!r} on the Hugging Face hub has no such branch, tag or commit."
        raise ValueError(msg) from error
    except RepositoryNotFoundError as error:
        msg = f"There is no repository {repo_id!r} on the Hugging Face hub, or you may not read it. {log_in}"
        raise ValueError(msg) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            msg = f"The Hugging Face hub refuses access to {repo_id!r} (status {status}). {log_in}"
            raise PermissionError(msg) from error
        msg = f"The Hugging Face hub did not do what was asked for {repo_id!r} (status {status}): {error}"
        raise ConnectionError(msg) from error
    except Exception as error:
        # the HTTP library of the hub, and its errors, differ between versions
        msg = f"The Hugging Face hub could not be reached for {repo_id!r}: {error}"
        raise ConnectionError(msg) from error
