"""Commands that serve models to other programs, and to a person's browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from bertfast.errors import BertfastError

from .command import FILE, argument, command, device_option, option, precision_option, say
from .extensions import IMPORTED, import_all, import_option

NEEDED = ("starlette", "uvicorn", "httptools", "orjson", "pydantic", "prometheus_client")


def _sharing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both commands have."""
    for decorator in reversed(
        (
            argument("models", nargs=-1, required=True, metavar="DIR..."),
            device_option,
            precision_option,
            option("--workers", type=int, default=1, help="Processes that compute."),
            option("--threads", type=int, help="Of each worker. Default: the machine's, shared."),
            option(
                "--max-wait-ms",
                type=float,
                default=2.0,
                help="How long a batch waits for more inputs.",
            ),
            option("--max-batch-tokens", type=int, default=2048, help="Tokens of a packed batch."),
            option("--max-queue", type=int, default=8192, help="Texts not yet answered; then 429."),
            option("--max-batch", type=int, default=2048, help="Texts of a request."),
            option("--max-chars", type=int, default=100_000, help="Characters of a text."),
            option("--max-body", type=int, default=16 << 20, help="Bytes of a request."),
            option("--max-connections", type=int, default=8192, help="At a time; more get 503."),
            option("--timeout", type=float, default=30.0, help="Seconds until an answer, or 504."),
            option(
                "--read-timeout",
                type=float,
                default=10.0,
                help="Seconds that a client has for its headers, and for its body.",
            ),
            option(
                "--truncate/--no-truncate",
                default=True,
                help="Cut inputs longer than the model takes, where a request does not say.",
            ),
            import_option,
        )
    ):
        function = decorator(function)
    return function


@command()
@_sharing
@option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 is every one.")
@option("--port", type=int, default=8000, help="0 is any that is free.")
@option(
    "--api-key-file",
    type=FILE,
    help="File of keys, one a line; the environment's BERTFAST_API_KEYS has some too.",
)
@option("--access-log", is_flag=True, help="Write method, path, status and time of requests.")
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    access_log: bool,
    **options: Any,
) -> None:
    """Serve models over HTTP, and a page to try them on.

    DIR is a folder or a Hub id of any model that bertfast reads, or NAME=DIR to name it. Clients of
    OpenAI's embeddings and of text-embeddings-inference are answered.

    \b
    Example:
        bertfast serve classifier encoder --port 8000
    """
    _run(
        models,
        options,
        host=host,
        port=port,
        keys=api_key_file,
        log=access_log,
        then=lambda _: None,
    )


@command()
@_sharing
@option("--port", type=int, default=0, help="0 is any that is free.")
@option("--browser/--no-browser", default=True, help="Open the page in the browser.")
def app(models: tuple[str, ...], port: int, browser: bool, **options: Any) -> None:
    """Open a page in the browser, to try models on texts of one's own.

    DIR is a folder or a Hub id of any model that bertfast reads, or NAME=DIR to name it.

    \b
    Example:
        bertfast app classifier
    """
    import threading
    import webbrowser

    def then(address: str) -> None:
        if browser:
            # A browser in a terminal returns only when it is left.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    _run(models, options, host="127.0.0.1", port=port, keys=None, log=False, then=then)


def _run(
    models: tuple[str, ...],
    options: dict[str, Any],
    *,
    host: str,
    port: int,
    keys: Path | None,
    log: bool,
    then: Callable[[str], None],
) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BertfastError(
            f"{', '.join(missing)} is not installed; the server is an extra: "
            "pip install 'bertfast[serve]'"
        )
    from bertfast.serving.app import Access, Server
    from bertfast.serving.limits import Limits, api_keys
    from bertfast.serving.served import specs_of
    from bertfast.serving.server import run

    limits = Limits(**{one.name: options[one.name] for one in fields(Limits)})
    access = Access(api_keys(keys), log)

    def opened(address: str, server: Server) -> None:
        for model in server.models.values():
            say(f"{model.name}: {model.kind}, {model.folder}", "serve")
        print(address, flush=True)
        then(address)

    run(
        specs_of(models, options["device"], options["precision"]),
        limits,
        host=host,
        port=port,
        workers=options["workers"],
        threads=options["threads"],
        access=access,
        prepare=partial(import_all, click.get_current_context().meta[IMPORTED]),
        opened=opened,
    )
