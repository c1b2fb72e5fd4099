"""A model and its folder in Hugging Face's format: ``config.json`` and the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.files import make_folder, write_text

from .memory import check_memory
from .weights import WEIGHTS, StoredTensor, open_weights, write_tensors

if TYPE_CHECKING:
    from .models import PreTrainedModel

RENAMED = ((".gamma", ".weight"), (".beta", ".bias"))  # names that old releases wrote
BUFFERS = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "inv_freq",
)  # which hold nothing of their own
FEW_LAYERS = 64  # which take no time to make, and to hold against the weights one by one
ADAPTER_SETTINGS = "adapter_config.json"  # of peft's folders
NAMED = 8  # problems that an error names; the rest it counts


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of `peft` and not a whole model."""
    folder = Path(folder)
    return (folder / ADAPTER_SETTINGS).is_file() and not (folder / "config.json").is_file()


def load_config(folder: str | Path) -> EncoderConfig:
    """The configuration in a model folder.

    Raises:
        BertfastError: no such folder, or its config.json is missing or unsupported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BertfastError(
            f"{folder}: no such folder; a model folder holds config.json and {WEIGHTS}"
        )
    if is_adapter(folder):
        raise BertfastError(
            f"{folder}: holds an adapter alone; write the whole model with: "
            f"bertfast merge {folder} --out DIR"
        )
    return EncoderConfig.from_json_file(folder / "config.json")


def check_layers(config: EncoderConfig, stored: dict[str, StoredTensor], folder: object) -> None:
    """Raises BertfastError if there are fewer weights than layers in the configuration: before a
    model of so many is made.
    """
    groups = getattr(config, "num_hidden_groups", config.num_hidden_layers)  # ALBERT shares layers
    layers = groups * getattr(config, "inner_group_num", 1)
    if layers > max(len(stored), FEW_LAYERS):
        raise BertfastError(
            f"{folder}: the weights do not fit: config.json asks for {layers} layers, and the "
            f"weights are {len(stored)} tensors in all"
        )


def _canonical(
    weights: dict[str, StoredTensor], model: PreTrainedModel
) -> tuple[dict[str, StoredTensor], list[tuple[str, StoredTensor, str]]]:
    """Current names with the encoder's prefix; beside them what is tied to another weight, each
    with its name and the other's.
    """
    member = model.member
    base_only = not any(name.startswith(f"{member.base}.") for name in weights)
    result = {}
    for name, stored in weights.items():
        for old, new in RENAMED:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if not name.endswith(BUFFERS):
            result[f"{member.base}.{name}" if base_only else name] = stored
    decoder, word = member.lm.decoder, f"{member.base}.{member.module_paths['word']}.weight"
    copies = []
    for copy, original in ((f"{decoder}.weight", word), (f"{decoder}.bias", member.lm.bias)):
        if copy == original or (tied := result.pop(copy, None)) is None:
            continue
        if result.setdefault(original, tied) is not tied:
            copies.append((copy, tied, original))
    return result, copies


def load_weights(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    new_head_ok: bool = False,
    mismatched_ok: bool | None = None,
    stored: dict[str, StoredTensor] | None = None,
) -> list[str]:
    """Reads a folder's weights into ``model``; returns the names of head weights that keep their
    initial values.

    A head that the model lacks is left out of the folder's weights; nothing of the encoder is ever
    left random. A model on the meta device gets its memory once its weights are known to fit, and
    head weights of no particular values. The files' headers are held against the model before any
    weight is read. ``stored`` is `open_weights` of the folder, where that was called already;
    ``mismatched_ok``, by default ``new_head_ok``, lets head weights of another shape be new too.

    Raises:
        BertfastError: a file that cannot be read, or weights missing, unknown or of another shape:
            each is named.
    """
    found, copies = _canonical(stored or open_weights(folder), model)
    mismatched_ok = new_head_ok if mismatched_ok is None else mismatched_ok
    own = model.state_dict()
    base, member = f"{model.member.base}.", model.member
    pooler = f"{base}pooler."  # a head, where the checkpoint was trained without one
    prefix = base if model.base is model else ""
    expected = {prefix + name: name for name in own}

    missing = [name for name in expected if name not in found]
    kept = (
        [name for name in missing if not name.startswith(base) or name.startswith(pooler)]
        if new_head_ok
        else []
    )
    absent = [f"missing {name}" for name in missing if name not in kept]
    heads = member.head_paths - {name.rpartition(".")[0] for name in expected}
    if model.mlm is not None:
        heads -= set(member.lm.paths.values())
    unknown = [
        f"unknown {name}"
        for name in found
        if name not in expected
        and not name.startswith(pooler)
        and name not in heads
        and name.rpartition(".")[0] not in heads
        # DeBERTa v3 was published with a table that it does not use.
        and name != f"{base}{member.module_paths.get('position')}.weight"
    ]
    misshapen = [
        f"{name} holds {found[name].dtype}"
        for name in expected
        if name in found and not found[name].is_floating
    ]
    for name, target in expected.items():
        if name in found and found[name].shape != tuple(own[target].shape):
            shapes = f"{found[name].shape}, the config wants {tuple(own[target].shape)}"
            if mismatched_ok and name.rpartition(".")[0] in member.head_paths - set(
                member.lm.paths.values()
            ):
                kept.append(name)
            else:
                misshapen.append(f"{name} is {shapes}")
    if problems := [*misshapen, *unknown, *absent]:
        shown = "; ".join(problems[:NAMED]) + (
            f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        )
        raise BertfastError(f"{folder}: the weights do not fit {type(model).__name__}: {shown}")
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:
        check_memory(model, folder)
    if model.mlm is not None:
        for copy, tied, original in copies:
            kept_shape = found[original].shape
            if tied.shape != kept_shape or not _equal(found[original].read(), tied.read()):
                raise BertfastError(
                    f"{folder}: {copy} is not tied to {original}; "
                    "such checkpoints are not supported"
                )
    if on_meta:
        own = model.to_empty(device=torch.get_default_device()).state_dict()
    with torch.no_grad():
        for name, target in expected.items():
            if name not in kept:
                own[target].copy_(found[name].read())
    return [expected[name] for name in kept]


def _equal(kept: Tensor, tied: Tensor) -> bool:
    return torch.equal(kept, tied.to(kept.dtype))


def _masters(model: PreTrainedModel) -> dict[str, Tensor]:
    """The float32 masters of weights that are trained in bfloat16, by name.

    A weight that something else wrote to since, so that it is no rounded master, has none.
    """
    return {
        name: master.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if isinstance(master := getattr(parameter, "master", None), Tensor)
        and parameter.dtype != master.dtype
        and torch.equal(parameter.detach(), master.detach().to(parameter.dtype))
    }


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in Hugging Face's format, creating the
    folder.

    Raises:
        BertfastError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    config = (
        json.dumps(model.config.to_dict(type(model).__name__), indent=2, ensure_ascii=False) + "\n"
    )
    write_tensors(folder / WEIGHTS, model.state_dict() | _masters(model), {"format": "pt"})
    write_text(folder / "config.json", config)
