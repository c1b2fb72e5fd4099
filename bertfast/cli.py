"""The command line. A user's mistake is one line after ``error:`` and exit code 2."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

try:  # newer releases of typer carry click inside them
    from typer import _click as click
except ImportError:
    import click  # type: ignore[no-redef]

from bertfast import __version__
from bertfast.errors import BertfastError

# Imports of torch and the like stand inside the commands, so that --help answers at once.

app = typer.Typer(
    name="bertfast",
    help="Pretrain and fine-tune BERT encoders on packed batches, with fused Triton and C++ kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# In a help text, the registered ones go here.
OBJECTIVES_HERE, TASKS_HERE = "OBJECTIVES", "TASKS"


class RegistryCommand(TyperCommand):
    """Has the registered objectives and tasks in its help."""

    def get_help(self, ctx: click.Context) -> str:
        """The help, with what is registered by now."""
        marked = {p: text for p in self.params if (text := getattr(p, "help", None))}
        try:
            for parameter, text in marked.items():
                for mark in (OBJECTIVES_HERE, TASKS_HERE):
                    if mark in text:
                        parameter.help = text.replace(mark, _registered(mark))
            return super().get_help(ctx)
        finally:
            for parameter, text in marked.items():
                parameter.help = text  # type: ignore[attr-defined]


def _registered(mark: str) -> str:
    """The names of the registered objectives or tasks, each with its few words."""
    from bertfast.objectives import OBJECTIVES
    from bertfast.tasks import TASKS

    known: dict[str, Any] = OBJECTIVES if mark == OBJECTIVES_HERE else TASKS  # type: ignore[assignment]
    return ", ".join(
        f"{name} ({one.summary})" if one.summary else name for name, one in known.items()
    )


class FilesCommand(RegistryCommand):
    """Lets ``--data`` take several files: ``--data a.txt b.txt`` is ``--data a.txt --data b.txt``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expanded: list[str] = []
        taking = False
        for arg in args:
            if arg.startswith("-") and arg != "-":
                taking = arg.split("=")[0] == "--data"
                expanded.append(arg)
            elif taking and expanded[-1] != "--data":
                expanded += ["--data", arg]
            else:
                expanded.append(arg)
        return super().parse_args(ctx, expanded)


def _version(value: bool) -> None:
    if value:
        print(f"bertfast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what this machine runs: versions, instruction sets, and the backend that each op takes.

    \b
    Example:
        bertfast doctor
    """
    from bertfast.apps import doctor as app_doctor

    facts = app_doctor.report()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        app_doctor.show(facts)


@app.command()
def tune(
    op: Annotated[str | None, typer.Option(help="One op; default: each that has options.")] = None,
    dtype: Annotated[
        str, typer.Option(help="bfloat16, which serves float16 too, or float32.")
    ] = "bfloat16",
    head_dim: Annotated[int, typer.Option(help="Size of the attention's heads.")] = 64,
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = 768,
) -> None:
    """Measure which tile sizes of the Triton kernels are the fastest on this GPU, and keep them for
    later runs.

    \b
    Example:
        bertfast tune --op attention
    """
    from bertfast.apps import tune as app_tune

    app_tune.tune(op, dtype, head_dim, hidden)


@app.command(cls=FilesCommand)
def tokenizer(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FILE...", help="Files of text: plain, JSON lines, or gzip of either."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            help="wordpiece (BERT), mpnet (MPNet's WordPiece), bpe (RoBERTa's bytes) or "
            "unigram (ALBERT, DeBERTa v3).",
        ),
    ] = "wordpiece",
    vocab_size: Annotated[int, typer.Option(help="Entries of the vocabulary.")] = 30522,
    cased: Annotated[
        bool, typer.Option("--cased", help="Keep upper case and accents, as bpe always does.")
    ] = False,
    text_field: Annotated[str, typer.Option(help="Field of JSON lines.")] = "text",
) -> None:
    """Train a tokenizer on text: WordPiece, byte-level BPE or Unigram.

    \b
    Example:
        bertfast tokenizer --data corpus.txt --vocab-size 8192 --out tok
    """
    from bertfast.data.readers import read_documents
    from bertfast.tokenization import (
        save_tokenizer,
        train_byte_level_bpe,
        train_unigram,
        train_wordpiece,
    )

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BertfastError(f"{out}: exists already; choose another --out")
    lines = (line for document in read_documents(data, text_field) for line in document)
    if kind in ("wordpiece", "mpnet"):
        trained = train_wordpiece(lines, vocab_size, lowercase=not cased, mpnet=kind == "mpnet")
    elif kind == "unigram":
        trained = train_unigram(lines, vocab_size, lowercase=not cased)
    elif kind == "bpe":
        trained = train_byte_level_bpe(lines, vocab_size)
    else:
        raise BertfastError(f"type is {kind!r}; it must be one of wordpiece, bpe, unigram, mpnet")
    save_tokenizer(trained, out)
    print(f"{trained.get_vocab_size()} entries in {out}")


@app.command(cls=FilesCommand)
def pretrain(
    ctx: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE...",
            help="Files of text: plain (a blank line between documents), JSON lines, or gzip of either.",
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of the tokenizer.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A preset (bert-small, albert-base, electra-small, distilbert-base, ...), a config.json, or a model's folder."
        ),
    ] = "bert-small",
    objective: Annotated[str, typer.Option(help=f"One of {OBJECTIVES_HERE}.")] = "mlm+nsp",
    teacher: Annotated[
        str | None, typer.Option(help="Folder of the model to distill from.")
    ] = None,
    generator_size: Annotated[
        float,
        typer.Option(
            help="Width of the generator beside the discriminator's, with --objective rtd."
        ),
    ] = 0.25,
    masking: Annotated[str, typer.Option(help="dynamic (new each epoch) or static.")] = "dynamic",
    mask_unit: Annotated[
        str, typer.Option(help="What is hidden together: token, whole-word or span.")
    ] = "token",
    steps: Annotated[int, typer.Option(help="Updates.")] = 10_000,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch at most.")] = 8192,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence at most.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Updates of warm-up; default: 1000, or a tenth of --steps if that is less."
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Not of biases and norms.")] = 0.01,
    clip_norm: Annotated[float, typer.Option(help="Norm that gradients are scaled down to.")] = 1.0,
    accumulation: Annotated[int, typer.Option(help="Batches averaged for an update.")] = 1,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 with float32 master weights.")
    ] = "fp32",
    cuda_graph: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="Send each update to the GPU at once; default: where it can be.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, data order, masks and dropout.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Updates between checkpoints.")] = 1000,
    log_every: Annotated[
        int, typer.Option(help="Updates that a line of metrics.jsonl averages over.")
    ] = 10,
    text_field: Annotated[str, typer.Option(help="Field of JSON lines.")] = "text",
    config: Annotated[
        Path | None, typer.Option(help="YAML file of these options; those given beside it win.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
) -> None:
    """Pretrain a BERT on text.

    \b
    Example:
        bertfast pretrain --data corpus.txt --tokenizer tok --model bert-mini --steps 1000 --out run
    """
    from bertfast.training.config import PretrainConfig, read_yaml
    from bertfast.training.pretrain import Interrupted
    from bertfast.training.pretrain import pretrain as run_pretrain

    options: dict[str, Any] = read_yaml(config) if config else {}
    for field in fields(PretrainConfig):
        given = ctx.get_parameter_source(field.name) == click.core.ParameterSource.COMMANDLINE
        if given or field.name not in options:
            options[field.name] = ctx.params[field.name]
    for field in fields(PretrainConfig):
        if field.default is MISSING and not options[field.name]:
            raise BertfastError(f"--{field.name} is missing; give it, or a --config that sets it")
    try:
        result = run_pretrain(**options, resume=resume)
    except Interrupted as stopped:
        print(
            "bertfast: stopped after a checkpoint; the same command with --resume goes on",
            file=sys.stderr,
        )
        raise typer.Exit(128 + stopped.args[0]) from None
    print(f"{result.out}: step {result.steps}, loss {result.last.get('loss', float('nan')):.4f}")


@app.command(cls=RegistryCommand)
def finetune(
    model: Annotated[str, typer.Argument(help="Folder of a pretrained model.")],
    train: Annotated[
        str, typer.Option(help="Training data: TSV, CSV or JSON lines with a header.")
    ],
    dev: Annotated[str, typer.Option(help="Data that the best epoch is chosen on.")],
    out: Annotated[str, typer.Option(help="Folder to write; it must not exist.")],
    task: Annotated[
        str | None,
        typer.Option(help=f"One of {TASKS_HERE}. Default: the one that the labels are of."),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Default: sentence, or else text.")
    ] = None,
    pair_column: Annotated[str | None, typer.Option(help="Second text of a pair.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Default: label. A label is a word or a whole number.")
    ] = None,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Train the classifier alone.")
    ] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Keep the model's shape, not its weights.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 3,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; default 5e-5, 1e-2 when frozen.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples of an update.")] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of an example at most; default: the model's positions."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 with float32 master weights.")
    ] = "fp32",
    seed: Annotated[int, typer.Option(help="Of new weights, order and dropout.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last epoch of a stopped run.")
    ] = False,
) -> None:
    """Fine-tune a pretrained model for a task on labelled texts.

    \b
    Example:
        bertfast finetune run --train train.tsv --dev dev.tsv --epochs 3 --out classifier
    """
    from bertfast.tasks import TASKS
    from bertfast.training.finetune import FinetuneConfig
    from bertfast.training.finetune import finetune as run_finetune
    from bertfast.training.trainer import Interrupted

    values = locals()
    options = {field.name: values[field.name] for field in fields(FinetuneConfig)}
    try:
        result = run_finetune(**options, resume=resume)
    except Interrupted as stopped:
        print(
            "bertfast: stopped after a checkpoint; the same command with --resume goes on",
            file=sys.stderr,
        )
        raise typer.Exit(128 + stopped.args[0]) from None
    said = ", ".join(TASKS[result.task].said(result.scores))
    print(f"{result.out}: dev {said} (epoch {result.best_epoch})")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a fine-tuned model.")],
    data: Annotated[str, typer.Option(help="Labelled data: TSV, CSV or JSON lines with a header.")],
    text_column: Annotated[
        str | None, typer.Option(help="Default: sentence, or else text.")
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(
            help="Second text of a pair; default: the one that the model was trained with."
        ),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: label.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Score a fine-tuned model on labelled data.

    \b
    Example:
        bertfast evaluate classifier --data test.tsv --json
    """
    from bertfast.tasks import TASKS
    from bertfast.training.evaluate import evaluate as run_evaluate

    scores = run_evaluate(model, data, text_column, pair_column, label_column)
    _say_truncated(scores["truncated"], scores["max_length"])
    if as_json:
        print(json.dumps(scores))
    else:
        said = "  ".join(TASKS[scores["task"]].said(scores))
        print(f"{said}  ({scores['examples']} examples)")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Folder of a fine-tuned model.")],
    file: Annotated[
        str,
        typer.Argument(
            help="TSV, CSV or JSON lines with a header; plain text, a text a line; or - for such lines on "
            "standard input. A blank line is an empty text."
        ),
    ] = "-",
    text_column: Annotated[
        str | None, typer.Option(help="Default: sentence, or else text.")
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(
            help="Second text of a pair; default: the one that the model was trained with."
        ),
    ] = None,
) -> None:
    """Write each text's label and probabilities as a line of JSON, one for each line of the input.

    \b
    Example:
        echo "a charming and affecting journey" | bertfast predict classifier -
    """
    from bertfast.training.predict import Predictor

    predictor = Predictor(model)
    examples = predictor.read(file, text_column, pair_column)
    outputs, inputs = predictor.run(examples)
    config = predictor.model.config
    predictions = predictor.task.predict(outputs, inputs, examples, config)
    for example, prediction in zip(examples, predictions, strict=True):
        print(_json_line(predictor.task.echo(example) | prediction))
    _say_truncated(sum(item.truncated for item in inputs), predictor.max_length)


def _json_line(values: dict[str, Any]) -> str:
    """JSON without any character that some reader takes for the end of a line."""
    text = json.dumps(values, ensure_ascii=False)
    return text.translate({code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)})


@app.command()
def fill(
    model: Annotated[str, typer.Argument(help="Folder of a model with a masked-LM head.")],
    text: Annotated[
        str,
        typer.Argument(
            help="A text with [MASK] (or the tokenizer's own mask) where a word is to go."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many words for each mask.")] = 5,
) -> None:
    """Print the likeliest words for each [MASK].

    \b
    Example:
        bertfast fill run "return the [MASK] of the list"
    """
    from bertfast.training.fill import MaskFiller

    filler = MaskFiller(model)
    masks, truncated = filler.fill(text, top)
    _say_truncated(int(truncated), filler.model.config.max_position_embeddings)
    for number, fillers in enumerate(masks, 1):
        if len(masks) > 1:
            print(f"mask {number}")
        for choice in fillers:
            # A byte-level tokenizer's words may have line ends in them.
            word, filled = (" ".join(part.split()) for part in (choice.word, choice.text))
            print(f"{choice.probability:.4f}  {word:<16}  {filled}")


@app.command()
def embed(
    model: Annotated[
        str, typer.Argument(help="Folder of a sentence-transformers model, or of a plain encoder.")
    ],
    file: Annotated[
        str, typer.Argument(help="Plain text, a text a line, or - for standard input.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="File to write: a NumPy array (.npy), float32, a row for each line."),
    ],
    batch_size: Annotated[
        int | None, typer.Option(help="Texts of a batch at most; default: what suits the machine.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Make every vector's length 1.")
    ] = False,
    prompt_name: Annotated[
        str | None, typer.Option(help="One of the model's prompts, to put before each text.")
    ] = None,
) -> None:
    """Write a vector for each line of a text. A line with nothing on it has one too, so that rows
    are lines.

    \b
    Example:
        bertfast embed run corpus.txt --out vectors.npy
    """
    import numpy as np
    import torch

    from bertfast.data.readers import read_lines
    from bertfast.files import write_atomically
    from bertfast.sentences import SentenceEncoder

    texts = read_lines(file)
    if not out.parent.is_dir():
        raise BertfastError(f"{out}: there is no folder {out.parent}")
    encoder = SentenceEncoder.from_pretrained(model).to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    tokens = encoder.tokenize(texts, prompt_name=prompt_name)
    vectors = encoder.encode_tokens(
        tokens, batch_size=batch_size, normalize=normalize, show_progress=True
    )

    def save(path: Path) -> None:
        with open(path, "wb") as stream:
            np.save(stream, vectors)

    write_atomically(out, save)
    print(f"{vectors.shape[0]} vectors of {vectors.shape[1]} numbers in {out}")
    _say_truncated(tokens.cut, encoder.max_length)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write; a folder of an earlier demo is replaced.")
    ] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Of the whole demo.")] = 0,
) -> None:
    """Train, fine-tune and report on text that every Python ships: minutes on two cores, no
    network.

    \b
    Example:
        bertfast demo --out demo-run
    """
    from bertfast.apps.demo import run_demo
    from bertfast.training.pretrain import Interrupted

    try:
        run_demo(out, seed=seed)
    except Interrupted as stopped:
        raise typer.Exit(128 + stopped.args[0]) from None


@app.command()
def bench(
    op: Annotated[
        list[str] | None,
        typer.Option(help="An op to measure; may be given several times. Default: all."),
    ] = None,
    step: Annotated[
        bool,
        typer.Option("--step", help="Measure the training step (alone, unless ops are named)."),
    ] = False,
    embedding: Annotated[
        bool,
        typer.Option(
            "--embedding",
            help="Measure sentence embeddings (alone, unless ops are named), say with --model minilm-l6 --seconds 60.",
        ),
    ] = False,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside",
            help="Measure the training step alone, beside a second training and beside a busy loop, under each way "
            "for OpenMP's threads to wait, say with --model bert-mini --seconds 6.",
        ),
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="Of --embedding: a text, a paragraph a line. Default: made-up words."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Of --embedding: the model for --text. Default: random weights."),
    ] = None,
    model: Annotated[str, typer.Option(help="Preset whose sizes are taken.")] = "bert-base",
    lengths: Annotated[
        Path | None,
        typer.Option(help="File of sequence lengths, one a line. Default: WikiText's paragraphs."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seconds: Annotated[float, typer.Option(min=0.01, help="Of timing for each case.")] = 3.0,
    compiled: Annotated[
        bool, typer.Option(help="Have torch.compile among the peers; compiling takes a while.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the ops, the training step or sentence embeddings on this machine, beside what people
    use today.

    \b
    Example:
        bertfast bench --op attention --op add_layer_norm --lengths lengths.txt --dtype bfloat16
        bertfast bench --beside --model bert-mini
    """

    def say(progress: str) -> None:
        print(f"bertfast bench: {progress}", file=sys.stderr, flush=True)

    from bertfast.bench import options

    options.check(model, lengths, dtype, ops=op or [], text=text, folder=folder)
    if beside and (op or step or embedding):
        raise BertfastError("--beside measures by itself; leave out --op, --step and --embedding")
    say("loading PyTorch")
    from bertfast.bench import command

    if beside:
        found = command.bench_beside(model, lengths, dtype, seconds, say)
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            command.beside.show(found)
        if "stopped" in found:
            raise typer.Exit(128 + found["stopped"])
        return
    setup = command.make_setup(
        model, lengths, dtype, compiled, command.EMBEDDED if embedding else None
    )
    more = command.embedding_cases(text, folder) if embedding else []
    show = None if as_json else command.show
    found = command.bench(setup, op or [], step, seconds, show, more, say)
    if as_json:
        print(json.dumps(found, indent=1))
    if "stopped" in found:
        raise typer.Exit(128 + found["stopped"])


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="Preset of the model.")] = "bert-base",
    lengths: Annotated[
        Path | None,
        typer.Option(help="File of sequence lengths, one a line. Default: WikiText's paragraphs."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    trace: Annotated[Path | None, typer.Option(help="File for a Chrome trace.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a training step's time goes, and each op's floor.

    \b
    Example:
        bertfast profile --model bert-mini --dtype bfloat16 --trace step.json
    """
    from bertfast.bench import options

    options.check(model, lengths, dtype, trace=trace)
    print("bertfast profile: loading PyTorch, then profiling", file=sys.stderr, flush=True)
    from bertfast.bench import command
    from bertfast.bench import profile as profiling

    found = profiling.profile(command.make_setup(model, lengths, dtype), trace)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        profiling.show(found)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of pretraining runs.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .svg, .png or .pdf.")] = Path(
        "curves.svg"
    ),
) -> None:
    """Draw the learning curves of pretraining runs.

    \b
    Example:
        bertfast plot run --out curves.svg
    """
    from bertfast.apps.plot import plot as draw

    draw(runs, out)
    print(out)


def _say_truncated(count: int, limit: int) -> None:
    if count:
        print(
            f"bertfast: {count} input(s) were longer than {limit} tokens and were cut",
            file=sys.stderr,
        )


def main() -> None:
    """The entry point: every expected failure becomes one line and an exit code."""
    try:
        code = app(standalone_mode=False)
        if code == 128 + signal.SIGINT:  # what typer makes of an interrupt
            _die_of_interrupt()
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:
        # The reader of the pipe has left; the interpreter's own flush at exit must not complain
        # again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except KeyboardInterrupt:  # during an import that is not under typer
        _die_of_interrupt()
    except BertfastError as error:
        _fail(str(error))
    except OSError as error:
        _fail(str(error))
    except RuntimeError as error:
        from bertfast.kernels import BackendError

        if not isinstance(error, BackendError):
            raise
        _fail(str(error))


def _die_of_interrupt() -> None:
    """Ends by the signal itself, as a shell expects of what Ctrl-C stopped (it reads 130).

    ``sys.exit(130)`` would do so only at times: where the interrupt met code that runs from a
    string (a dataclass in the making), the interpreter ends by the signal whatever code it is
    given.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
