"""``python -m benchmarks cpu`` or ``gpu``: run everything that the device can show, and write it as
JSON.

``page`` makes plots and tables of it, ``import`` takes in what a GPU machine left.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .importable import REPOSITORY, is_missing

CPU_SECONDS = 1740.0

EXAMPLES = """examples:
  python -m benchmarks cpu
      every case on the CPU; writes benchmarks/results and docs/performance.md
  python -m benchmarks cpu --only attention
      the cases of one op (any expression of pytest's -k), written under build/
  python -m benchmarks cpu --only embed --update
      an op anew, in the place of its cases in the JSON that is there
  python -m benchmarks gpu --part 2 --results FOLDER
      a part of what a GPU can show, in under eight minutes; all four without --part
  python -m benchmarks import FOLDER
      such results into benchmarks/results, the page and kernels/configs
  python -m benchmarks cpu --quick
      tiny shapes: does everything run? its figures mean nothing
  python -m benchmarks page
      tables and plots again, from the JSON that is there
"""


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the ops and the training step beside what people use today.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        choices=["cpu", "gpu", "import", "page"],
        help="where to measure; or what to do with results that are there",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="of the results to import")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes and few rounds, written under build/"
    )
    parser.add_argument(
        "--only", default="", help="cases whose names match, as in pytest's -k, under build/"
    )
    parser.add_argument(
        "--update", action="store_true", help="put the cases of --only into benchmarks/results"
    )
    parser.add_argument(
        "--part", type=int, choices=[1, 2, 3, 4], help="of the GPU's: check, step, ops or tune"
    )
    parser.add_argument(
        "--results", type=Path, help="folder of the GPU's results; build/gpu without it"
    )
    options = parser.parse_args()
    if (options.what == "import") != (options.folder is not None):
        parser.error("`import` takes a folder, and nothing else does")
    if options.what == "page":
        from .page import write_page

        write_page()
        return 0
    if options.what == "import":
        return _import(options.folder)
    if options.what == "gpu":
        return _measure_gpu(options)
    print("benchmarks: loading PyTorch", file=sys.stderr, flush=True)
    return _measure(options.quick, options.only, options.update)


def _import(folder: Path) -> int:
    from bertfast.errors import BertfastError

    from .gpu.records import import_folder
    from .page import write_page
    from .settings import RESULTS

    try:
        target = import_folder(folder, RESULTS)
    except BertfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"benchmarks: wrote {target}")
    if is_missing("matplotlib"):
        print("benchmarks: matplotlib is not installed: `python -m benchmarks page` draws the page")
    else:
        write_page()
    return 0


def _measure_gpu(options: argparse.Namespace) -> int:
    """On a machine without a GPU ``--quick`` runs all the same, on the CPU."""
    import torch

    from bertfast.errors import BertfastError

    from .gpu.items import PARTS
    from .gpu.parts import run_parts
    from .gpu.records import read
    from .page import print_tables
    from .settings import Settings

    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.quick:
        print(
            "error: no CUDA GPU that PyTorch can use is on this machine; "
            "`make bench` measures the CPU",
            file=sys.stderr,
        )
        return 2
    results = (options.results or REPOSITORY / "build" / "gpu").resolve()
    settings = Settings("cuda" if has_gpu else "cpu", options.quick, results=results)
    chosen = [part for part in PARTS if options.part in (None, part.number)]

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    clean = run_parts(chosen, settings, options.only)
    # Only what this run wrote: another one's figures must not pass for it.
    try:
        print_tables([read([part.path(results) for part in chosen])])
    except BertfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"benchmarks: the results are in {results}")
    return 0 if clean else 1


def _measure(quick: bool, only: str, update: bool) -> int:
    from .settings import PARTIAL_RESULTS, RESULTS, Settings

    wall = time.time()
    kept = not quick and (update or not only)
    settings = Settings("cpu", quick, CPU_SECONDS, RESULTS if kept else PARTIAL_RESULTS, update)
    code = _pytest(
        "benchmarks",
        "--capture=sys",  # the lines of progress go past it
        "-p",
        "no:xdist",
        "--benchmark-columns=median,iqr,rounds",
        *(["-k", only] if only else []),
        environment=settings.environment(),
    )
    from .page import load_results, print_tables, write_page

    # Only what this run wrote: another one's figures must not pass for it.
    records = load_results(settings.results, since=wall)
    print_tables(records)
    if kept and records:
        write_page()
    return code


def _pytest(*arguments: str, environment: dict[str, str]) -> int:
    """Its exit code; of a stop by a signal, that of the signal."""
    options = ("-q", "--timeout", "0", "-p", "benchmarks.importable")
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    # In a session of its own, so that a stop reaches it once: as an interrupt, by which pytest ends
    # in order.
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | environment, start_new_session=True
    )
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        child.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + stopped[0] if stopped else code


if __name__ == "__main__":
    sys.exit(main())
