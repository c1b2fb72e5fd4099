"""The entry point and its exit codes."""

from __future__ import annotations

import os
import signal
import sys

import click

from bertfast import __version__
from bertfast.errors import BertfastError
from bertfast.ranks import Ranks, launched

from .infer import embed, evaluate, features, fill, predict
from .machine import bench, doctor, plan, profile, tune
from .sentences import mine, rerank, search, sentences
from .serve import app as page
from .serve import serve
from .share import export, merge, push
from .train import adapt, compare, demo, finetune, glue, plot, prepare, pretrain, tokenizer

MANY_RANKS = ("pretrain", "adapt")  # the commands that torchrun may start


class _InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    "bertfast",
    cls=_InOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(
    __version__, prog_name="bertfast", message="%(prog)s %(version)s", help="Print the version."
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Pretrain and fine-tune BERT encoders on packed batches, with fused Triton and C++ kernels."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        ctx.exit(2)
    size = launched().size
    if size > 1 and ctx.invoked_subcommand not in MANY_RANKS:
        raise BertfastError(
            f"bertfast {ctx.invoked_subcommand} is one process, and there are {size} ranks; start "
            f"it without torchrun or srun (several serve {' and '.join(MANY_RANKS)})"
        )


for command in (
    *(
        doctor,
        tune,
        tokenizer,
        prepare,
        pretrain,
        adapt,
        finetune,
        glue,
        sentences,
        evaluate,
        predict,
        fill,
        embed,
        features,
        search,
        rerank,
        mine,
        compare,
        demo,
    ),
    *(serve, page, bench, profile, plan, plot, merge, export, push),
):
    app.add_command(command)


def main() -> None:
    """The entry point: every expected failure becomes one line and an exit code."""
    try:
        code = _run(sys.argv[1:])
        if code == 128 + signal.SIGINT:
            _die_of_interrupt()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # The reader of the pipe has left; the interpreter's own flush at exit must not complain
        # again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except click.ClickException as error:
        _fail(error.format_message())
    except KeyboardInterrupt:
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


def _run(args: list[str]) -> int:
    """The exit code of a command."""
    try:
        with app.make_context("bertfast", args) as context:
            app.invoke(context)
    except click.exceptions.Exit as stopped:
        return stopped.exit_code
    return 0


def _die_of_interrupt() -> None:
    """Ends by the signal itself, as a shell expects of what Ctrl-C stopped (it reads 130).

    ``sys.exit(130)`` would do so only at times. The interrupt may meet code that runs from a
    string, such as a dataclass in the making. The interpreter then ends by the signal, whatever
    code it is given.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def _fail(message: str) -> None:
    """One line and exit code 2; of several ranks one alone says it."""
    line = f"error: {' '.join(message.split())}"
    try:
        ranks = launched()
    except BertfastError:
        ranks = Ranks()
    if ranks.speaks():
        print(line, file=sys.stderr, flush=True)
    if ranks.size > 1:
        ranks.linger()
        # A process group without its other ranks may not come to an end.
        os._exit(2)
    sys.exit(2)
