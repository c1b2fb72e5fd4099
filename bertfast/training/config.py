"""What a pretraining run is told, checked when it is made; ``config.yaml`` mirrors it field for
field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bertfast import files
from bertfast.config import PRESETS
from bertfast.data.packing import MASK_UNITS, MASKINGS
from bertfast.errors import BertfastError
from bertfast.objectives import find_objective

from .precision import PRECISIONS


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        data: files of text (see `bertfast.data.readers`).
        tokenizer: folder of the tokenizer.
        out: folder of the run; it must not exist, unless the run is resumed.
        model: a preset's name, or a config.json, for a new model of that shape over the tokenizer's
            words; or a folder in Hugging Face's format to go on training from.
        objective: "mlm", "mlm+nsp" (is the second segment the next or a random one), "mlm+sop" (are
            the two swapped), "rtd" (ELECTRA's replaced-token detection) or "distill" (from a
            teacher).
        teacher: folder in Hugging Face's format, of the model to distill from; with "distill"
            alone.
        generator_size: width of the generator beside the discriminator's, with "rtd".
        masking: "dynamic" (new each epoch) or "static".
        mask_unit: what is hidden together: "token", "whole-word" or "span" (of whole words, as in
            SpanBERT).
        steps: optimizer updates.
        batch_tokens: tokens of a batch at most; of one part of it under accumulation.
        seq_len: tokens of a sequence at most, special tokens included.
        lr: peak learning rate of AdamW.
        warmup: updates over which the rate rises; it then falls linearly to zero at ``steps``. None
            is 1000, or a tenth of ``steps`` if that is less.
        weight_decay: not of biases and norms.
        clip_norm: the joint norm that gradients are scaled down to.
        accumulation: batches whose gradients are averaged for one update.
        precision: "fp32", or "bf16" with float32 master weights.
        cuda_graph: send each update to the GPU as one CUDA graph, batches padded to fixed sizes;
            not with accumulation. None: wherever it can be.
        seed: of the weights, the data order, the masks and the dropout.
        checkpoint_every: updates; one more is written at the end.
        log_every: updates that a logged line averages over.
        text_field: of JSON lines.
    """

    data: tuple[str, ...]
    tokenizer: str
    out: str
    model: str = "bert-small"
    objective: str = "mlm+nsp"
    teacher: str | None = None
    generator_size: float = 0.25
    masking: str = "dynamic"
    mask_unit: str = "token"
    steps: int = 10_000
    batch_tokens: int = 8192
    seq_len: int = 128
    lr: float = 1e-4
    warmup: int | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulation: int = 1
    precision: str = "fp32"
    cuda_graph: bool | None = None
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 10
    text_field: str = "text"

    def __post_init__(self) -> None:
        objective = find_objective(self.objective)
        object.__setattr__(self, "data", tuple(str(path) for path in self.data))
        if not self.data:
            raise BertfastError("data names no file")
        for name in (
            "steps",
            "batch_tokens",
            "seq_len",
            "accumulation",
            "checkpoint_every",
            "log_every",
        ):
            _whole(name, getattr(self, name), 1)
        if self.warmup is None:
            object.__setattr__(self, "warmup", min(1000, self.steps // 10))
        warmup = _whole("warmup", self.warmup, 0)
        if _whole("seed", self.seed, 0) >= 2**63:
            raise BertfastError(f"seed is {self.seed}; it must be below 2^63")
        if warmup > self.steps:
            raise BertfastError(
                f"warmup is {self.warmup} and steps {self.steps}; warmup must not go beyond them"
            )
        for name in ("lr", "clip_norm"):
            _number(name, getattr(self, name), above=0)
        _number("weight_decay", self.weight_decay, least=0)
        for name, choices in (
            ("masking", MASKINGS),
            ("mask_unit", MASK_UNITS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise BertfastError(
                    f"{name.replace('_', '-')} is {getattr(self, name)!r}; "
                    f"it must be one of {', '.join(choices)}"
                )
        _number("generator_size", self.generator_size, above=0)
        if self.generator_size > 1:
            raise BertfastError(f"generator-size is {self.generator_size}; it must be at most 1")
        objective.check(self)
        if self.cuda_graph not in (None, True, False):
            raise BertfastError(
                f"cuda-graph is {self.cuda_graph!r}; it must be true, false or left out"
            )
        if self.cuda_graph and self.accumulation > 1:
            raise BertfastError(
                f"cuda-graph is on and accumulation {self.accumulation}; "
                "a graph holds an update of one batch"
            )
        if not self.starts_random and not Path(self.model).is_dir():
            raise BertfastError(
                f"model is {self.model!r}; it must be a preset ({', '.join(PRESETS)}), "
                "a config.json or a model's folder"
            )
        if self.batch_tokens < self.seq_len:
            raise BertfastError(
                f"batch-tokens is {self.batch_tokens} and seq-len {self.seq_len}; "
                "a batch must hold a whole sequence"
            )

    @property
    def starts_random(self) -> bool:
        """Whether the model is named by its shape alone."""
        return self.model in PRESETS or (
            self.model.endswith(".json") and Path(self.model).is_file()
        )

    def to_yaml(self) -> str:
        """The text of ``config.yaml``."""
        return yaml.safe_dump({**asdict(self), "data": list(self.data)}, sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets.

    Raises:
        BertfastError: the file is missing, no YAML mapping, or names a field that does not exist.
    """
    values = files.read_yaml(path)
    if not isinstance(values, dict):
        raise BertfastError(f"{path}: must hold a mapping of fields to values")
    known = [f.name for f in fields(PretrainConfig)]
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise BertfastError(
            f"{path}: no such field: {', '.join(unknown)}; there are {', '.join(known)}"
        )
    if "data" in values:
        data = [values["data"]] if isinstance(values["data"], str) else values["data"] or []
        if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
            raise BertfastError(f"{path}: data is {data!r}; it must be a file or a list of files")
        values["data"] = tuple(data)
    for name in ("tokenizer", "out", "model", "teacher"):
        if not isinstance(values.get(name) or "", str):
            raise BertfastError(f"{path}: {name} is {values[name]!r}; it must be text")
    # YAML 1.1 reads 1e-4, with no point in it, as text.
    for name in ("lr", "weight_decay", "clip_norm", "generator_size"):
        if isinstance(values.get(name), str):
            try:
                values[name] = float(values[name])
            except ValueError:
                raise BertfastError(
                    f"{path}: {name} is {values[name]!r}; it must be a number"
                ) from None
    return values


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BertfastError(
            f"{name.replace('_', '-')} is {value!r}; it must be a whole number of at least {least}"
        )
    return value


def _number(
    name: str, value: object, above: float | None = None, least: float | None = None
) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value < float("inf")
    if good and above is not None:
        good = value > above  # type: ignore[operator]
    if good and least is not None:
        good = value >= least  # type: ignore[operator]
    if not good:
        bound = f"above {above}" if above is not None else f"at least {least}"
        raise BertfastError(f"{name.replace('_', '-')} is {value!r}; it must be a number {bound}")
