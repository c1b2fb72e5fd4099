"""Uploads a model's folder to the Hugging Face Hub, with its card."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from bertfast.card import CARD_FILE
from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.resolve import MODEL_FILES

METRICS = "metrics.json"
# Text that any model's repository has; weights, settings and tokenizers are `MODEL_FILES`.
TEXTS = (CARD_FILE, "LICENSE", "LICENSE.txt", "metrics.jsonl")


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub, and what stays here.

    Attributes:
        files: paths in the folder.
        left_out: its other files, at its top.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]


def collect(folder: str | Path) -> Upload:
    """The files of a model's folder that are known to be safe: weights as safetensors, settings,
    tokenizers and texts.

    Raises:
        BertfastError: it is no folder, or has no weights, configuration or card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(f"{folder}: no such folder; give the folder of a model")
    known = re.compile("|".join(map(fnmatch.translate, (*MODEL_FILES, *TEXTS))))
    paths = sorted(
        path.relative_to(folder).as_posix()
        for path in (*folder.glob("*"), *folder.glob("*/*"))
        if path.is_file()
    )
    # A pattern's star would take folders in too; no known file lies deeper.
    files = tuple(path for path in paths if known.fullmatch(path))
    others = {"config.json": {"modules.json", "adapter_config.json"}}
    for name in ("config.json", CARD_FILE):
        if name not in files and not others.get(name, set()) & set(files):
            raise BertfastError(f"{folder}: has no {name}; push the folder of a finished run")
    if not any(path.endswith(".safetensors") for path in files):
        raise BertfastError(f"{folder}: has no model.safetensors; push a model's folder")
    rest = tuple(path for path in paths if path not in files and "/" not in path)
    return Upload(files, rest)


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload a model made with bertfast",
) -> str:
    """Uploads the files that `collect` names; returns the address of the commit. Of the paths in
    metrics.json the file names alone go with them.

    Args:
        folder: of the model.
        repository: its id on the Hub, "owner/name"; it is made where it is not there.
        private: whether a repository that is made is private.
        revision: a branch, made where it is not there; None is the main one.
        message: of the commit.

    Raises:
        BertfastError: as of `collect`; or no such id, no login, no right to write, or no network.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    upload = collect(folder)
    additions = [
        hub.CommitOperationAdd(name, _shared(Path(folder) / name)) for name in upload.files
    ]
    check_repository(repository)
    api = hub.HfApi(library_name="bertfast")
    try:
        api.whoami()
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository, operations=additions, revision=revision, commit_message=message
        )
    except errors.LocalTokenNotFoundError:
        raise BertfastError(
            "the Hugging Face Hub wants a login, and there is none here; hf auth login makes one"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise BertfastError(
            f"{repository}: cannot be uploaded while HF_HUB_OFFLINE is set; unset it"
        ) from None
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error.server_message or error).split())
        raise BertfastError(
            f"{repository}: the Hugging Face Hub refuses it ({reason}); has your token the right "
            "to write there?"
        ) from None
    except Exception as error:  # the client below it raises kinds of its own
        raise BertfastError(
            f"{repository}: the Hugging Face Hub cannot be reached ({type(error).__name__}: "
            f"{' '.join(str(error).split())})"
        ) from None
    return str(commit.commit_url)


def _shared(path: Path) -> Path | bytes:
    """The file as it is uploaded: the settings of a run name no folder of this machine."""
    if path.name != METRICS:
        return path
    values = read_object(path)
    if isinstance(values.get("settings"), dict):
        values["settings"] = {name: _file_name(value) for name, value in values["settings"].items()}
    return (json.dumps(values, indent=2) + "\n").encode()


def _file_name(value: Any) -> Any:
    """The last part of a path that leads out of the working directory; else the value."""
    if not isinstance(value, str):
        return value
    path = PureWindowsPath(value)  # which knows both kinds of slash
    leads_out = value[:1] in ("/", "~") or path.is_absolute() or ".." in path.parts
    return path.name if leads_out else value


def check_repository(repository: str) -> None:
    """Raises BertfastError where it is no id of a repository, with its owner or without."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise BertfastError(f"{repository!r} is no id of a repository ({error})") from None
