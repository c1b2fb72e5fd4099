"""Files of options: YAML, JSON or TOML, checked against the command's options."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from bertfast.errors import BertfastError

DEFAULT = ParameterSource.DEFAULT
OWN = ("config", "print_config", "help")  # options that stand in no file


def read_options(
    path: str, parameters: list[click.Parameter], normalize: Callable[[str], str]
) -> dict[str, Any]:
    """What a file sets, by the names of the command's parameters; null leaves one as it is.

    Args:
        path: .toml, .json, or else YAML.
        parameters: of the command.
        normalize: gives an option's own name for any of its spellings.

    Raises:
        BertfastError: the file cannot be read or is no mapping, a key is no option, or a value is
            of another type: each is named.
    """
    values = _read(Path(path))
    if not isinstance(values, dict):
        raise BertfastError(f"{path}: must hold a mapping of options to values")
    known = {
        spelling: parameter for parameter in parameters for spelling in spellings_of(parameter)
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        parameter = known.get(normalize(str(key)))
        if parameter is None or parameter.name is None:
            near = difflib.get_close_matches(normalize(str(key)), known, 1, 0)
            raise BertfastError(
                f"{path}: no such option: {key}; the nearest is {near[0].replace('-', '_')}"
            )
        if parameter.name in found:
            raise BertfastError(f"{path}: sets {parameter.name} twice")
        if value is not None:
            found[parameter.name] = _checked(f"{path}: {key}", value, parameter)
    return found


def write_options(context: click.Context) -> str:
    """The options of a command with their values, as YAML that `read_options` takes."""
    values = {}
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value == () and context.get_parameter_source(str(parameter.name)) is DEFAULT:
            value = None  # an empty list would say: none of them
        if (names := spellings_of(parameter)) and not getattr(parameter, "hidden", False):
            values[names[0].replace("-", "_")] = _plain(value)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def spellings_of(parameter: click.Parameter) -> list[str]:
    """The names of a parameter in a file, its own first; none for what stands in no file."""
    if parameter.name in OWN or parameter.name is None:
        return []
    if isinstance(parameter, click.Argument):
        return [parameter.name]
    names = [name.lstrip("-") for name in parameter.opts if name.startswith("--")]
    return [*names, parameter.name.replace("_", "-")]


def _read(path: Path) -> Any:
    from bertfast.files import read_json, read_text, read_yaml

    kind = path.suffix.lower()
    if kind == ".json":
        return read_json(path)
    if kind != ".toml":
        return read_yaml(path)
    try:
        return tomllib.loads(read_text(path))
    except ValueError as error:
        raise BertfastError(f"{path}: cannot be read as TOML ({error})") from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _checked(label: str, value: Any, parameter: click.Parameter) -> Any:
    """The value, where it is of the parameter's type."""
    if parameter.multiple or parameter.nargs == -1:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise BertfastError(f"{label} is {value!r}; it must be text or a list of texts")
        return items
    if getattr(parameter, "is_bool_flag", False):
        if not isinstance(value, bool):
            raise BertfastError(f"{label} is {value!r}; it must be true or false")
        return value
    if isinstance(parameter.type, click.types.IntParamType):
        if isinstance(value, bool) or not isinstance(value, int):
            raise BertfastError(f"{label} is {value!r}; it must be a whole number")
        return value
    if isinstance(parameter.type, click.types.FloatParamType):
        try:  # YAML 1.1 reads 1e-4, with no point in it, as text
            if isinstance(value, bool | list | dict):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise BertfastError(f"{label} is {value!r}; it must be a number") from None
    if not isinstance(value, str):
        raise BertfastError(f"{label} is {value!r}; it must be text")
    return value
