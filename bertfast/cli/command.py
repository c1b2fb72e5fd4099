"""What every command has: Hugging Face's spellings, ``--config`` and ``--print-config``, options
that take several values, and what is registered in its help.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from bertfast.errors import BertfastError
from bertfast.registry import summaries
from bertfast.resolve import Source

from . import config_file
from .spellings import SPELLINGS

FILE = click.Path(path_type=Path)
REGISTERED = "<registered>"  # in a help text: their names go here


class Command(click.Command):
    """A command with ``--config FILE`` and ``--print-config``.

    An option that may be given several times, and whose metavar ends in "...", takes several
    values in a row: ``--data a.txt b.txt``. What a command takes as its argument ``model`` may be
    said as ``--model`` too. Words of an option's name are joined by dashes or by underscores.

    Args:
        spellings: other names of options, beside `SPELLINGS`, each with the option that it is.
    """

    def __init__(
        self, *args: Any, spellings: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.params += [
            click.Option(
                ["--config"],
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=self._read_config,
                help="YAML, JSON or TOML file of these options; those given beside it win.",
            ),
            click.Option(
                ["--print-config"], is_flag=True, help="Print the options as YAML, and do no more."
            ),
        ]
        own = {name.lstrip("-") for option in self.params for name in option.opts}
        self.spellings = {
            other: name
            for other, name in {**SPELLINGS, **(spellings or {})}.items()
            if name in own and other not in own
        }
        self.context_settings = {
            "help_option_names": ["-h", "--help"],
            "show_default": True,
            "token_normalize_func": self.normalize,
            **self.context_settings,
        }

    def normalize(self, name: str) -> str:
        """The option that a spelling stands for, both without the leading dashes."""
        name = name.replace("_", "-")
        return self.spellings.get(name, name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rewritten = self._rewrite(args)
        required = [parameter for parameter in self.params if parameter.required]
        printing = "--print-config" in (arg.replace("_", "-") for arg in args)
        try:
            for parameter in required:
                parameter.required = not printing
            return super().parse_args(ctx, rewritten)
        finally:
            for parameter in required:
                parameter.required = True

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params.pop("print_config"):
            print(config_file.write_options(ctx), end="")
            return None
        return super().invoke(ctx)

    def _rewrite(self, args: list[str]) -> list[str]:
        """The arguments in the order that click reads.

        Each of several values gets its option's name, and the model goes to its place. The call for
        help goes behind what it may depend on.
        """
        end = args.index("--") if "--" in args else len(args)
        many = {
            name
            for option in self.params
            if isinstance(option, click.Option) and (option.metavar or "").endswith("...")
            for name in option.opts
        }
        takes_model = isinstance(self.params[0], click.Argument) and self.params[0].name == "model"
        rewritten: list[str] = []
        model: list[str] = []
        helps: list[str] = []
        taking: str | None = None
        given = iter(args[:end])
        for arg in given:
            if not arg.startswith("-") or arg == "-":
                if taking is not None and rewritten[-1] != taking:
                    rewritten.append(taking)
                rewritten.append(arg)
                continue
            name, equals, value = arg.partition("=")
            if name.startswith("--"):
                name = f"--{self.normalize(name[2:])}"
            taking = name if name in many else None
            if name in ("-h", "--help"):
                helps.append(name)
            elif takes_model and name == "--model":
                model = [value if equals else next(given, "")]
            else:
                rewritten.append(f"{name}{equals}{value}")
        return [*model, *rewritten, *helps, *args[end:]]

    def _read_config(self, ctx: click.Context, _: click.Parameter, path: str | None) -> None:
        if path is not None:
            ctx.default_map = config_file.read_options(path, self.params, self.normalize)


class RegistryOption(click.Option):
    """An option whose help names what is registered in the place of `REGISTERED`.

    Args:
        kind: "objective" or "task".
    """

    def __init__(self, *args: Any, kind: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = kind

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        names = ", ".join(
            f"{name} ({summary})" if summary else name
            for name, summary in summaries(self.kind).items()
        )
        return record and (record[0], record[1].replace(REGISTERED, names))


command = partial(click.command, cls=Command)
option = click.option
argument = click.argument
data_option = partial(
    option,
    "--data",
    multiple=True,
    required=True,
    metavar="FILE...",
)
text_field_option = option("--text-field", default="text", help="Field of JSON lines.")
json_option = option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
revision_option = option(
    "--revision", help="Branch, tag or commit of a model on the Hub. Default: its main branch."
)
text_column_option = option("--text-column", help="Default: sentence, or else text.")
task_options_option = option(
    "--task-option",
    "task_options",
    multiple=True,
    metavar="NAME=VALUE...",
    help="What one task alone has; its page lists them.",
)
device_option = option(
    "--device", help="cpu, cuda or cuda:N. Default: the GPU where PyTorch can use one."
)
precision_option = option(
    "--precision", default="fp32", help="Of the computation: fp32, bf16 or fp16."
)
training_precision_option = option(
    "--precision", default="fp32", help="fp32, or bf16 with float32 master weights."
)
lengths_option = option(
    "--lengths",
    type=FILE,
    help="File of sequence lengths, one a line. Default: WikiText's paragraphs.",
)


def say(text: str, command: str = "") -> None:
    """Tells the user on standard error."""
    print(f"bertfast{' ' * bool(command)}{command}: {text}", file=sys.stderr, flush=True)


def stop(signal_number: int) -> click.exceptions.Exit:
    """What ends a command that a signal stopped, with a shell's code for it."""
    return click.exceptions.Exit(128 + signal_number)


def say_weights(source: Source) -> None:
    """Says which weights were taken; where all went well, so that an error is one line."""
    say(f"weights: {source}")


def check_folder_of(out: Path) -> None:
    """Raises BertfastError where there is no folder to write the file into."""
    if not out.parent.is_dir():
        raise BertfastError(f"{out}: there is no folder {out.parent}")
