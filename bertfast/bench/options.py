"""What `bertfast bench` and `bertfast profile` are asked for, checked before PyTorch is loaded: a
mistake is answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bertfast.checks import number, one_of, whole_number
from bertfast.config import PRESETS, BertConfig, EncoderConfig, ModernBertConfig
from bertfast.errors import BertfastError

from .gpus import GPUS
from .lengths import Lengths

DTYPES = ("float32", "bfloat16")
OPS = (
    "attention",
    "linear",
    "linear_cross_entropy",
    "add_layer_norm",
    "bias_gelu",
    "embed",
    "dropout",
    "gather_rows",
    "rotary",
    "pack",
    "unpack",
    "mask_tokens",
)


def read_lengths(path: Path) -> Lengths:
    """The batch that a file describes: a whole number a line, or a JSON list of them.

    Raises:
        BertfastError: the file cannot be read, or holds anything but positive whole numbers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BertfastError(f"{path}: cannot be read as text ({error})") from error
    try:
        values = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [int(line) for line in text.split()]
        )
    except ValueError as error:
        raise BertfastError(
            f"{path}: {error}; it must hold a whole number a line, or a JSON list of them"
        ) from error
    for place, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BertfastError(
                f"{path}: length {place} is {value!r}; it must be a whole number of at least 1"
            )
    if not values:
        raise BertfastError(f"{path}: holds no lengths; it must have one a line")
    return Lengths(path.name, tuple(values))


def check_shape(shape: str, dtype: str) -> EncoderConfig:
    """The preset's configuration.

    Raises:
        BertfastError: no such preset among those whose floors are counted, or no such dtype.
    """
    known = [name for name, (cls, _) in PRESETS.items() if cls is BertConfig]
    if shape not in known:
        raise BertfastError(f"--shape is {shape!r}; it must be one of {', '.join(known)}")
    if dtype not in DTYPES:
        raise BertfastError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return EncoderConfig.preset(shape)


def check_fit(batch: Lengths, config: EncoderConfig, shape: str) -> None:
    """Raises BertfastError where a sequence has more tokens than the model has positions."""
    if batch.longest > config.max_position_embeddings:
        raise BertfastError(
            f"{batch.name}: the longest sequence has {batch.longest} tokens and {shape} takes "
            f"{config.max_position_embeddings}; shorten it"
        )


def check_ops(ops: Sequence[str]) -> None:
    """Raises BertfastError where one is none of `OPS`."""
    for op in ops:
        if op not in OPS:
            raise BertfastError(f"--op is {op!r}; it must be one of {', '.join(OPS)}")


def check_text(text: Path | None, model: str | Path | None) -> None:
    """Raises BertfastError where one is given without the other, or there is no such text."""
    if (text is None) != (model is None):
        raise BertfastError(
            "--text needs --model, a model with its tokenizer, and --model needs --text; the sizes "
            "of a preset are --shape"
        )
    if text is not None and not text.exists():
        raise BertfastError(f"{text}: no such file")


def check_trace(trace: Path | None) -> None:
    """Raises BertfastError where its folder is not there."""
    if trace is not None and not trace.parent.is_dir():
        raise BertfastError(f"--trace is {trace}; there is no folder {trace.parent}")


def check_model(
    gpu: str | None,
    tokens: int | None,
    lengths: Path | None,
    trace: Path | None,
    device: str | None,
) -> None:
    """Raises BertfastError where --model-gpu names no GPU that is known, or options do not fit
    it.
    """
    if gpu is None:
        if tokens is not None:
            raise BertfastError(
                "--tokens is of --model-gpu; the batch that is measured is --lengths"
            )
        return
    if gpu not in GPUS:
        raise BertfastError(f"--model-gpu is {gpu!r}; it must be one of {', '.join(GPUS)}")
    if trace is not None or device is not None:
        raise BertfastError("--model-gpu measures nothing; leave out --trace and --device")
    if tokens is not None and lengths is not None:
        raise BertfastError("--tokens and --lengths both give the batch; leave out one")
    if tokens is not None and tokens < 1:
        raise BertfastError(f"--tokens is {tokens}; it must be at least 1")


def check_plan(
    model: str,
    run_tokens: float,
    counts: Sequence[int],
    gpu: str,
    batch_tokens: int,
    update_tokens: float | None,
    seq_len: int,
    reduction: str,
    rate: float | None,
    price: float | None,
) -> None:
    """Raises BertfastError for the first option of `bertfast plan` that is wrong."""
    known = [name for name, (cls, _) in PRESETS.items() if cls in (BertConfig, ModernBertConfig)]
    one_of("model", model, known)
    one_of("gpu", gpu, GPUS)
    one_of("reduction", reduction, ("fp32", "bf16"))
    for count in counts:
        whole_number("gpus", count, 1)
    whole_number("batch_tokens", batch_tokens, 1)
    whole_number("seq_len", seq_len, 1)
    for name, value in (
        ("tokens", run_tokens),
        ("update_tokens", update_tokens),
        ("rate", rate),
        ("price", price),
    ):
        if value is not None:
            number(name, value, above=0)


def check(
    shape: str,
    lengths: Path | None,
    dtype: str,
    *,
    ops: Sequence[str] = (),
    text: Path | None = None,
    model: str | None = None,
    trace: Path | None = None,
) -> None:
    """Raises BertfastError for the first of these that is wrong."""
    config = check_shape(shape, dtype)
    if lengths is not None:
        check_fit(read_lengths(lengths), config, shape)
    check_ops(ops)
    check_text(text, model)
    check_trace(trace)


def check_finetune(
    model: str | None, train: str | None, dev: str | None, others: Mapping[str, object]
) -> None:
    """Raises BertfastError where what `--finetune` needs is not given, or what it does not take."""
    for name, value in (("model", model), ("train", train), ("dev", dev)):
        if value is None:
            raise BertfastError(f"--finetune needs --{name}")
    given = [f"--{name}" for name, value in others.items() if value]
    if given:
        raise BertfastError(f"--finetune measures by itself; leave out {' and '.join(given)}")
