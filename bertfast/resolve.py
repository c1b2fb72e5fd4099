"""Where the files of a model lie: in a folder here, or in a snapshot of the Hugging Face Hub.

What is downloaded goes through `huggingface_hub` with its cache, its login and its offline mode.
Weights come as safetensors alone: pickled ones are never asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import BertfastError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# The folders below are those of sentence-transformers' modules and of ELECTRA's generator.
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "adapted_config.json",
    "adapter_model.safetensors",
    "labels.json",
    "metrics.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    *WEIGHT_FILES,
    *TOKENIZER_FILES,
    *(
        f"{folder}/{name}"
        for folder in ("[0-9]_*", "generator")
        for name in ("config.json", "sentence_bert_config.json", *WEIGHT_FILES, *TOKENIZER_FILES)
    ),
)


@dataclass(frozen=True)
class Source:
    """What a model's name stands for.

    Attributes:
        name: as it was given.
        folder: that holds the files.
        revision: the commit on the Hub; None for a folder of the user's own.
    """

    name: str
    folder: Path
    revision: str | None = None

    def __str__(self) -> str:
        if self.revision is None:
            return f"the folder {self.folder}"
        return f"{self.name} of the Hugging Face Hub, revision {self.revision}"


def resolve(
    model: str | Path, revision: str | None = None, *, tokenizer_only: bool = False
) -> Source:
    """The folder that a model's name stands for; a Hub id is downloaded, or found in the cache.

    Args:
        model: a folder; or, as text, the id of a model on the Hub ("roberta-base", "org/name").
        revision: branch, tag or commit on the Hub; None is its main branch.
        tokenizer_only: leave the weights and settings of the model out.

    Raises:
        BertfastError: there is neither such a folder nor such an id, or it has no weights as
            safetensors. Or the Hub cannot be reached and the cache does not have it.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise BertfastError(
                f"revision is {revision!r} and {model} is a folder; only a Hub id has revisions"
            )
        return Source(str(model), Path(model))
    if not isinstance(model, str) or not is_hub_id(model) or Path(model).exists():
        problem = "is a file" if Path(model).exists() else "no such folder"
        raise BertfastError(
            f"{model}: {problem}; a model folder holds config.json and model.safetensors"
        )
    folder, unreachable = _snapshot(
        model, revision, TOKENIZER_FILES if tokenizer_only else MODEL_FILES
    )
    if not tokenizer_only and not any(folder.rglob("*.safetensors")):
        if unreachable:
            raise BertfastError(
                f"{model}: the Hugging Face Hub's cache here holds it in part, without weights as "
                f"safetensors, and {unreachable}"
            )
        raise BertfastError(
            f"{model}: has no model.safetensors on the Hugging Face Hub, and pickled weights are "
            "not loaded; convert it with transformers' save_pretrained"
        )
    return Source(model, folder, folder.name)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a model's id on the Hub: ``name`` or ``owner/name``."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith((".json", ".safetensors"))


def _snapshot(name: str, revision: str | None, patterns: tuple[str, ...]) -> tuple[Path, str]:
    """The folder of a snapshot, and why the Hub could not be reached ("" where it was)."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    unreachable = ""
    try:
        # Alone among the calls, this one takes a limit of time.
        hub.HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.GatedRepoError:
        unreachable = "the Hub asks for its terms to be accepted, on its page, and for a login"
    except errors.RevisionNotFoundError:
        raise BertfastError(f"{name}: has no revision {revision!r} on the Hub") from None
    except errors.RepositoryNotFoundError:
        unreachable = "the Hub has no such model, or it is private (log in: hf auth login)"
    except errors.OfflineModeIsEnabled:
        unreachable = "HF_HUB_OFFLINE keeps it from being downloaded"
    except Exception as error:  # the client below it raises kinds of its own
        unreachable = f"the Hugging Face Hub cannot be reached ({type(error).__name__})"
    try:
        folder = hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=bool(unreachable),
        )
    except errors.LocalEntryNotFoundError:
        raise BertfastError(
            f"{name}: no such folder; as a Hub id it is not in the cache of this machine, and "
            f"{unreachable or 'the Hugging Face Hub cannot be reached'}"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BertfastError(f"{name}: cannot be downloaded ({reason})") from None
    return Path(folder), unreachable
