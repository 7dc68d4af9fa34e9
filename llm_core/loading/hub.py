"""Models on the Hugging Face hub: how they are named, which of their files are fetched, and where these lie then.

`owner/name` is a folder of safetensors, or a repository with one GGUF file; `owner/name:file.gguf` is one of several.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from braid.errors import ModelFileError, ModelNotFound

PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
DUPLICATES = ("original/*", "consolidated*")
"""The same weights a second time, in the form of their first publisher."""
MAX_NAMES_SHOWN = 20

_PART = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(
    rf"(?P<repository>{_PART}/(?!{_PART}\.(?:gguf|safetensors)$){_PART})(?::(?P<file>(?:{_PART}/)*{_PART}\.gguf))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the hub, and which of its GGUF files if that was said."""

    repository: str
    file: str | None = None


def parse_reference(text: str) -> HubReference | None:
    """`owner/name` or `owner/name:file.gguf`; None for anything else."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else HubReference(match["repository"], match["file"])


def download(reference: HubReference) -> Path:
    """The local folder, or the local GGUF file, of a model; downloaded where it is not in the cache.

    Raises:
        ModelNotFound: the hub cannot be reached, has no such model, or does not let us have it.
        ModelFileError: there are several GGUF files to choose from.
    """
    try:
        return _download(reference)
    except ModelFileError:
        raise
    except Exception as error:  # what can go wrong between here and the hub has no common class
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFound(
            f"there is no path {reference.repository!r}, and fetching it from the Hugging Face hub failed: "
            f"{type(error).__name__}: {reason}",
            param="model",
        ) from error


def _download(reference: HubReference) -> Path:
    import huggingface_hub as hub

    if reference.file is not None:
        return Path(hub.hf_hub_download(reference.repository, reference.file))
    folder = Path(
        hub.snapshot_download(
            reference.repository, allow_patterns=list(PATTERNS), ignore_patterns=list(DUPLICATES)
        )
    )
    if any(folder.glob("*.safetensors")):
        return folder
    file = only_gguf(reference.repository, hub.list_repo_files(reference.repository))
    return folder if file is None else Path(hub.hf_hub_download(reference.repository, file))


def only_gguf(repository: str, files: list[str]) -> str | None:
    """The GGUF file among a repository's files, or None.

    Raises:
        ModelFileError: there are several; the message says how to name one.
    """
    found = sorted(file for file in files if file.endswith(".gguf"))
    if len(found) <= 1:
        return found[0] if found else None
    more = f" and {len(found) - MAX_NAMES_SHOWN} more" if len(found) > MAX_NAMES_SHOWN else ""
    raise ModelFileError(
        f"{repository} has {len(found)} GGUF files; name one, such as '{repository}:{found[0]}': "
        f"{', '.join(found[:MAX_NAMES_SHOWN])}{more}"
    )
