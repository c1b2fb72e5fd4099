"""Commands about this machine: what it runs, and how fast."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bertfast.errors import BertfastError
from bertfast.resolve import resolve

from .command import (
    FILE,
    REGISTERED,
    RegistryOption,
    command,
    device_option,
    json_option,
    lengths_option,
    option,
    say,
    say_weights,
    stop,
    task_options_option,
)

shape_option = option("--shape", default="bert-base", help="Preset whose sizes are taken.")
dtype_option = option("--dtype", "--precision", default="float32", help="float32 or bfloat16.")


@command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine runs: versions, instruction sets, and the backend that each op takes.

    \b
    Example:
        bertfast doctor
    """
    from bertfast.apps import doctor as app

    facts = app.report()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        app.show(facts)


@command()
@option("--op", help="One op; default: each that has options.")
@option(
    "--dtype",
    "--precision",
    default="bfloat16",
    help="bfloat16, which serves float16 too, or float32.",
)
@option("--head-dim", type=int, default=64, help="Size of the attention's heads.")
@option("--hidden", type=int, default=768, help="Width of the model.")
def tune(op: str | None, dtype: str, head_dim: int, hidden: int) -> None:
    """Measure which tile sizes of the Triton kernels are the fastest on this GPU, and keep them for
    later runs.

    \b
    Example:
        bertfast tune --op attention
    """
    from bertfast.apps import tune as app

    app.tune(op, _dtype(dtype), head_dim, hidden)


@command()
@option("--op", multiple=True, help="An op to measure; may be given several times. Default: all.")
@option("--step", is_flag=True, help="Measure the training step (alone, unless ops are named).")
@option(
    "--embedding",
    is_flag=True,
    help="Measure sentence embeddings (alone, unless ops are named), say with --shape minilm-l6 "
    "--seconds 60.",
)
@option(
    "--beside",
    is_flag=True,
    help="Measure the training step alone, beside a second training and beside a busy loop. It "
    "runs under each way for OpenMP's threads to wait. Try --shape bert-mini --seconds 6.",
)
@option(
    "--finetune",
    is_flag=True,
    help="Measure fine-tuning beside the Trainer of transformers, say with --seeds 3.",
)
@option(
    "--text",
    type=FILE,
    help="Of --embedding: a text, a paragraph a line. Default: made-up words.",
)
@option(
    "--model",
    "--folder",
    help="Folder or Hub id: of --finetune, or of --embedding with --text. Default: random weights.",
)
@option("--train", help="Of --finetune: training data, as bertfast finetune takes it.")
@option("--dev", help="Of --finetune: data that is scored after each epoch, and predicted.")
@option(
    "--task",
    cls=RegistryOption,
    kind="task",
    help=f"Of --finetune: one of {REGISTERED}. Default: the one that the labels are of.",
)
@task_options_option
@option("--adapter", help="Of --finetune: measure ours with lora, dora or ia3 too.")
@option("--epochs", type=int, default=3, help="Of --finetune: passes over the data.")
@option("--lr", type=float, default=5e-5, help="Of --finetune: peak learning rate.")
@option("--batch-size", type=int, default=32, help="Of --finetune: examples of a batch.")
@option("--max-length", type=int, help="Of --finetune: tokens of an example at most.")
@option("--seeds", type=int, default=3, help="Of --finetune: runs of each side.")
@option(
    "--out",
    type=FILE,
    help="Of --finetune: folder for the figures as JSON and table.md, which has all of its files; "
    "what is there already is not measured again.",
)
@shape_option
@lengths_option
@dtype_option
@option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=3.0,
    help="Of timing for each case.",
)
@option(
    "--compiled/--no-compiled",
    default=True,
    help="Have torch.compile among the peers; compiling takes a while.",
)
@device_option
@json_option
def bench(
    op: tuple[str, ...],
    step: bool,
    embedding: bool,
    beside: bool,
    finetune: bool,
    text: Path | None,
    model: str | None,
    out: Path | None,
    shape: str,
    lengths: Path | None,
    dtype: str,
    seconds: float,
    compiled: bool,
    device: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure ops, the training step, sentence embeddings or fine-tuning on this machine, beside
    what people use today.

    \b
    Example:
        bertfast bench --op attention --op add_layer_norm --lengths lengths.txt --dtype bfloat16
        bertfast bench --beside --shape bert-mini
    """
    from bertfast.bench import options

    dtype = _dtype(dtype)
    if finetune:
        others = {"op": op, "step": step, "embedding": embedding, "beside": beside, "text": text}
        options.check_finetune(model, settings["train"], settings["dev"], others)
        _bench_finetune(out, as_json, model=model, device=device, dtype=dtype, **settings)
        return
    for name in ("train", "dev", "task", "adapter"):
        if settings[name] is not None:
            raise BertfastError(f"--{name} is of --finetune")
    options.check(shape, lengths, dtype, ops=op, text=text, model=model)
    if beside and (op or step or embedding):
        raise BertfastError("--beside measures by itself; leave out --op, --step and --embedding")
    if model is not None and not embedding:
        raise BertfastError("--model is of --embedding; the sizes of a preset are --shape")
    source = None if model is None else resolve(model)
    if source is not None:
        say_weights(source)
    say("loading PyTorch", "bench")
    from bertfast.bench import command as app

    def progress(text: str) -> None:
        say(text, "bench")

    if beside:
        found = app.bench_beside(shape, lengths, dtype, seconds, progress)
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            app.beside.show(found)
        if "stopped" in found:
            raise stop(found["stopped"])
        return
    setup = app.make_setup(
        shape, lengths, dtype, compiled, app.EMBEDDED if embedding else None, device
    )
    more = app.embedding_cases(text, source.folder if source else None) if embedding else []
    show = None if as_json else app.show
    found = app.bench(setup, list(op), step, seconds, show, more, progress)
    if as_json:
        print(json.dumps(found, indent=1))
    if "stopped" in found:
        raise stop(found["stopped"])


def _bench_finetune(
    out: Path | None, as_json: bool, *, dtype: str, adapter: str | None, **settings: Any
) -> None:
    from bertfast.bench import finetuning
    from bertfast.training.finetune import FinetuneConfig

    precision = {"float32": "fp32", "bfloat16": "bf16"}.get(dtype, dtype)
    config = FinetuneConfig(**settings, out="bench", precision=precision)
    if adapter is not None:
        replace(config, adapter=adapter)  # which checks it
    with tempfile.TemporaryDirectory() as folder:
        found = finetuning.measure(
            config, out or Path(folder), adapter, lambda text: say(text, "bench")
        )
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        finetuning.show(found)


@command()
@shape_option
@lengths_option
@option(
    "--dtype",
    "--precision",
    help="float32 or bfloat16. Default: float32, and bfloat16 with --model-gpu.",
)
@option("--trace", type=FILE, help="File for a Chrome trace.")
@option(
    "--model-gpu",
    help="Model the step on this GPU and measure nothing: a100, h100, h200 or b200. Needs Triton, "
    "and no GPU.",
)
@option("--tokens", type=int, help="Of --model-gpu: tokens of the batch, at WikiText's lengths.")
@device_option
@json_option
def profile(
    shape: str,
    lengths: Path | None,
    dtype: str | None,
    trace: Path | None,
    model_gpu: str | None,
    tokens: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Show where a training step's time goes, and each op's floor; or with --model-gpu where it
    should go on a GPU that is not here.

    \b
    Example:
        bertfast profile --shape bert-mini --dtype bfloat16 --trace step.json
        bertfast profile --model-gpu h200 --tokens 15570
    """
    from bertfast.bench import options

    dtype = _dtype(dtype or ("float32" if model_gpu is None else "bfloat16"))
    options.check(shape, lengths, dtype, trace=trace)
    options.check_model(model_gpu, tokens, lengths, trace, device)
    if model_gpu is not None:
        say("loading PyTorch, then compiling the kernels", "profile")
        from bertfast.bench import modelled

        modelled_step = modelled.model(modelled.setup(shape, lengths, dtype, tokens), model_gpu)
        if as_json:
            print(json.dumps(modelled_step, indent=1))
        else:
            modelled.show(modelled_step)
        return
    say("loading PyTorch, then profiling", "profile")
    from bertfast.bench import command as app
    from bertfast.bench import profile as profiling

    found = profiling.profile(app.make_setup(shape, lengths, dtype, device=device), trace)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        profiling.show(found)


@command(spellings={"shape": "model"})
@option("--model", required=True, help="Its shape: a preset (bert-base, bert-large, ...).")
@option("--tokens", "run_tokens", type=float, required=True, help="Of the run, such as 100e9.")
@option(
    "--gpus",
    type=int,
    multiple=True,
    required=True,
    metavar="N...",
    help="How many there are; several numbers give a row each.",
)
@option("--gpu", default="h100", help="a100, h100, h200 or b200, eight a machine.")
@option("--batch-tokens", type=int, default=65_536, help="Tokens of an update on each GPU.")
@option(
    "--update-tokens", type=float, help="In its place, tokens of an update on all GPUs together."
)
@option("--seq-len", type=int, default=512, help="Tokens of a sequence.")
@option("--reduction", default="fp32", help="In which ranks sum gradients: fp32 or bf16.")
@option(
    "--rate", type=float, help="Tokens a second measured on one GPU. Default: a model of shapes."
)
@option("--price", type=float, help="Of one GPU for an hour; adds the cost.")
@json_option
def plan(
    model: str,
    run_tokens: float,
    gpus: tuple[int, ...],
    gpu: str,
    batch_tokens: int,
    update_tokens: float | None,
    seq_len: int,
    reduction: str,
    rate: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Model a pretraining run on many GPUs, and measure nothing: hours, efficiency and memory.

    \b
    Example:
        bertfast plan --model bert-large --tokens 100e9 --gpus 64
    """
    from bertfast.bench import options

    options.check_plan(
        model, run_tokens, gpus, gpu, batch_tokens, update_tokens, seq_len, reduction, rate, price
    )
    say("loading PyTorch", "plan")
    from bertfast.bench import plan as planning

    found = planning.plans(
        model,
        run_tokens,
        list(gpus),
        gpu,
        batch_tokens,
        update_tokens,
        seq_len,
        reduction,
        rate,
        price,
    )
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        planning.show(found)


def _dtype(name: str) -> str:
    """The data type's name in PyTorch; the short names of precisions are taken too."""
    return {"fp32": "float32", "bf16": "bfloat16"}.get(name, name)
