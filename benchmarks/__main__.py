"""``python -m benchmarks cpu`` or ``gpu``: run everything that the device can show, then write
JSON, plots and the page of tables.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Any

from .importable import REPOSITORY, is_missing
from .plain import NEEDED

# `make gpu` ends within nine minutes; what the kernel tests leave of it goes to the figures.
GPU_SECONDS, GPU_TEST_SECONDS, GPU_MARGIN = 520.0, 240.0, 45.0
CPU_SECONDS = 1740.0

EXAMPLES = """examples:
  python -m benchmarks cpu
      every case on the CPU; writes benchmarks/results and docs/performance.md
  python -m benchmarks cpu --only attention
      the cases of one op (any expression of pytest's -k), written under build/
  python -m benchmarks cpu --only embed --update
      an op anew, in the place of its cases in the JSON that is there
  python -m benchmarks gpu
      kernel tests, then every case on the GPU, in under nine minutes
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
        "device",
        choices=["cpu", "gpu", "page"],
        help="what to measure on, or to write the page alone",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes and few rounds, written under build/"
    )
    parser.add_argument(
        "--only", default="", help="cases whose names match, as in pytest's -k, under build/"
    )
    parser.add_argument(
        "--update", action="store_true", help="put the cases of --only into benchmarks/results"
    )
    options = parser.parse_args()
    if options.device == "page":
        from .page import write_page

        write_page()
        return 0
    if options.device == "gpu" and not _has_gpu():
        print(
            "error: no CUDA GPU that PyTorch can use is on this machine; "
            "`make bench` measures the CPU",
            file=sys.stderr,
        )
        return 2
    print("benchmarks: loading PyTorch", file=sys.stderr, flush=True)
    return _measure(
        "cuda" if options.device == "gpu" else "cpu", options.quick, options.only, options.update
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure(device: str, quick: bool, only: str, update: bool) -> int:
    from .settings import PARTIAL_RESULTS, RESULTS, Settings

    started, wall = time.monotonic(), time.time()
    missing = [name for name in NEEDED if is_missing(name)]
    if missing:
        print(
            f"benchmarks: {', '.join(missing)} not installed: the kernels' tests are left out; "
            "each case still checks that its sides agree",
            file=sys.stderr,
        )
    elif device == "cuda":
        # What the compiler says of registers and shared memory needs no GPU: `make test` checks it.
        tests = (
            "tests/kernels",
            "tests/training/test_graph.py",
            "tests/apps/test_tune.py",
            "--ignore=tests/kernels/test_resources.py",
        )
        code = _pytest(*tests, "-n", "8", timeout=GPU_TEST_SECONDS)
        if code:
            print(
                "error: the kernels' tests failed; figures of wrong kernels are worth nothing",
                file=sys.stderr,
            )
            return code
    left = (
        GPU_SECONDS - GPU_MARGIN - (time.monotonic() - started) if device == "cuda" else CPU_SECONDS
    )
    kept = not quick and (update or not only)
    settings = Settings(device, quick, left, RESULTS if kept else PARTIAL_RESULTS, update)
    # A case starts only where there is time for it; should one take longer, what was measured
    # before is written already.
    limit = left + GPU_MARGIN / 2 if device == "cuda" else None
    if missing:
        words = only.replace(" and ", " ").split()
        code = _run("benchmarks.plain", *words, environment=settings.environment(), timeout=limit)
    else:
        code = _pytest(
            "benchmarks",
            "--capture=sys",  # the lines of progress go past it
            "-p",
            "no:xdist",
            "--benchmark-columns=median,iqr,rounds",
            *(["-k", only] if only else []),
            environment=settings.environment(),
            timeout=limit,
        )
    from .page import load_results, print_tables, write_page

    # Only what this run wrote: another one's figures must not pass for it.
    records = load_results(settings.results, since=wall)
    print_tables(records)
    if kept and records and is_missing("matplotlib"):
        print("benchmarks: matplotlib is not installed: `python -m benchmarks page` draws the page")
    elif kept and records:
        write_page()
    return code


def _pytest(
    *arguments: str, environment: dict[str, str] | None = None, timeout: float | None = None
) -> int:
    options = ("-q", "--timeout", "0", "-p", "benchmarks.importable")
    return _run("pytest", *options, *arguments, environment=environment, timeout=timeout)


def _run(
    module: str, *arguments: str, environment: dict[str, str] | None, timeout: float | None
) -> int:
    command = [sys.executable, "-m", module, *arguments]
    # In a session of its own, so that a stop reaches it once: as an interrupt, by which pytest ends
    # in order.
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | (environment or {}), start_new_session=True
    )
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        child.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        print(f"error: {module} did not end within {timeout:.0f} s", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + stopped[0] if stopped else code


if __name__ == "__main__":
    sys.exit(main())
