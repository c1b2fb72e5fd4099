"""``bertfast bench --beside``: a training step alone, beside a second training, and beside a busy
loop, under each way for OpenMP's threads to wait.

A runtime reads how to wait when it starts. So each training is a process of its own (``python -m
bertfast.bench.beside``). It makes its model, then steps for as long as it is told. In between it is
halted. All ways take their turn in every round, so that a drift of the machine meets them alike.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch

from bertfast import openmp
from bertfast.config import BertConfig
from bertfast.errors import BertfastError
from bertfast.machine import describe_machine, versions

from . import steps
from .case import Setup
from .lengths import Lengths
from .timing import NOISE_BOUND, is_noisy, spread

ROUNDS = 3
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
LEAST_STEPS = 2  # of a window, however slow they are
SETTLING = 1.0  # seconds of steps before a window, in which bertfast's threads see who is there
SITUATIONS = ("alone", "two trainings", "busy loop")
SPINNING = "default"
# It ends by itself when the process that started it has gone.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


def policies() -> dict[str, dict[str, str]]:
    """The ways to wait, by name, as the variables that ask for each; PyTorch's own is the first."""
    ways = {
        SPINNING: {openmp.SPINS: "300000", openmp.BLOCKS: "200"},
        "bertfast": openmp.variables_to_set({}, openmp.pressure_file({})),
        "passive": {openmp.POLICY: "passive"},
    }
    given = set(openmp.PREPARED.environment) - set(openmp.PREPARED.ours) - {"OMP_NUM_THREADS"}
    if given:
        ways["yours"] = {name: openmp.PREPARED.environment[name] for name in sorted(given)}
    return ways


class Training:
    """A training in a process of its own, which waits as ``variables`` say.

    Raises:
        BertfastError: from each method, when the process has ended.
    """

    def __init__(self, setup: Setup, variables: dict[str, str]) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in openmp.READ or name == "OMP_NUM_THREADS"
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bertfast.bench.beside"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=kept | variables,
        )
        self.send(
            {
                "config": setup.config.to_dict(),
                "lengths": setup.lengths.values,
                "dtype": setup.dtype_name,
            }
        )

    def send(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else self._fail()

    def warmed_up(self) -> None:
        """Waits until it is ready, and halts it until its turn: some ways spin without end."""
        self.answer()
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def _fail(self) -> None:
        _, said = self.process.communicate()
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise BertfastError(
            f"a training of --beside ended with code {self.process.returncode}: {last[0]}"
        )

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(
    setup: Setup, seconds: float, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Steps of each training a second, and processor seconds of a step, by way and situation.

    A KeyboardInterrupt ends it after the last whole round, if there is one.

    Args:
        setup: the lengths, model and dtype; the device is the CPU.
        seconds: of timing for each way in each situation, all rounds together.
        say: told what comes next, a line each.

    Raises:
        BertfastError: a training ended before its time, or the system halts no process.
    """
    if not hasattr(signal, "SIGSTOP"):
        raise BertfastError("--beside halts and continues processes, which this system cannot do")
    ways = policies()
    order, trainings = list(ways), {name: list[Training]() for name in ways}
    samples: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {situation: [] for situation in SITUATIONS} for name in ways
    }
    done = 0
    try:
        for name in order:
            say(f"starting two trainings, {name}")
            for _ in range(2):
                trainings[name].append(Training(setup, ways[name]))
            for training in trainings[name]:
                training.warmed_up()
        for number in range(ROUNDS):
            for name in order[number % len(order) :] + order[: number % len(order)]:
                say(f"round {number + 1} of {ROUNDS}, {name}")
                for situation, sample in _windows(trainings[name], seconds / ROUNDS):
                    samples[name][situation].append(sample)
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        say(f"stopped; {done} of {ROUNDS} rounds were measured")
    finally:
        for training in (one for pair in trainings.values() for one in pair):
            training.end()
    whole = {
        name: {situation: taken[:done] for situation, taken in found.items()}
        for name, found in samples.items()
    }
    return {
        "machine": describe_machine("cpu"),
        "versions": versions(),
        "lengths": list(setup.lengths.values),
        "dtype": setup.dtype_name,
        "shape": f"{setup.config.num_hidden_layers} layers of {setup.config.hidden_size}, "
        f"{setup.lengths.name}, {setup.lengths.tokens:,} tokens",
        "rounds": done,
        "waiting": {
            name: {"environment": ways[name]} | _summary(whole[name], whole[SPINNING])
            for name in ways
        },
    }


def _windows(
    trainings: Sequence[Training], seconds: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """One window of each situation, of two trainings that wait alike."""
    yield "alone", _window(trainings[:1], seconds)
    yield "two trainings", _window(trainings, seconds)
    with _busy_loop():
        sample = _window(trainings[:1], seconds)
    yield "busy loop", sample


def _window(trainings: Sequence[Training], seconds: float) -> dict[str, float]:
    """The mean of the trainings that step at once; each goes on until all have measured."""
    for training in trainings:
        training.signal(signal.SIGCONT)
    for training in trainings:
        training.send([SETTLING, seconds])
    answers = [training.answer() for training in trainings]
    for training in trainings:
        training.send("stop")
    for training in trainings:
        training.answer()
        training.signal(signal.SIGSTOP)
    return {key: sum(answer[key] for answer in answers) / len(answers) for key in answers[0]}


@contextmanager
def _busy_loop() -> Iterator[None]:
    """One core's worth of other work."""
    process = subprocess.Popen([sys.executable, "-S", "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _summary(
    own: dict[str, list[dict[str, float]]], spinning: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Medians and quartiles; ratios are taken within a round."""

    def rates(samples: dict[str, list[dict[str, float]]], situation: str) -> list[float]:
        return [sample["steps_per_second"] for sample in samples[situation]]

    def ratio(above: list[float], below: list[float]) -> dict[str, float]:
        return spread([one / other for one, other in zip(above, below, strict=True)])

    quiet = rates(own, "alone")
    found: dict[str, Any] = {
        situation: {
            "steps_per_second": spread(rates(own, situation)),
            "cpu_seconds_per_step": spread(
                [sample["cpu_seconds_per_step"] for sample in own[situation]]
            ),
            "of_quiet": ratio(rates(own, situation), quiet),
        }
        for situation in SITUATIONS
    }
    found["quiet_of_spinning"] = ratio(quiet, rates(spinning, "alone"))
    found["noisy"] = any(is_noisy(found[situation]["steps_per_second"]) for situation in SITUATIONS)
    return found


def show(found: dict[str, Any]) -> None:
    """Prints the table, and says what its columns are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(
        title=escape(f"a training step: {found['shape']}, {found['dtype']}"), title_justify="left"
    )
    table.add_column("waiting")
    for heading in (
        "alone, steps/s",
        "of default",
        "two, each",
        "busy loop",
        "CPU s, alone",
        "CPU s, two",
    ):
        table.add_column(heading, justify="right")
    for name, way in found["waiting"].items():
        table.add_row(
            escape(name) + (" ~" if way["noisy"] else ""),
            f"{way['alone']['steps_per_second']['median']:,.2f}",
            f"{way['quiet_of_spinning']['median']:.0%}",
            f"{way['two trainings']['of_quiet']['median']:.0%}",
            f"{way['busy loop']['of_quiet']['median']:.0%}",
            f"{way['alone']['cpu_seconds_per_step']['median']:.3f}",
            f"{way['two trainings']['cpu_seconds_per_step']['median']:.3f}",
        )
    console.print(table)
    for name, way in found["waiting"].items():
        variables = " ".join(f"{key}={value}" for key, value in way["environment"].items())
        console.print(escape(f"{name}: {variables or 'nothing set'}"))
    console.print(
        "two, busy loop: each training's speed beside a second one, or beside a busy loop, as a "
        "share of the same way's speed alone. CPU s: processor seconds of a step."
    )
    if found["machine"]["threads"] == 1:
        console.print("one thread: no thread waits for another, so that all ways are alike")
    if any(way["noisy"] for way in found["waiting"].values()):
        console.print(
            f"~ too noisy to conclude: quartiles lie more than {NOISE_BOUND:.0%} of the median "
            "apart; stop what else runs here, or give it more --seconds"
        )


def work(source: IO[str], sink: IO[str]) -> None:
    """The training process: a setup, then windows, as lines of JSON; ends with its input."""

    def say(message: object) -> None:
        print(json.dumps(message), file=sink, flush=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that measures ends this one
    if sys.platform == "linux":  # even when it is killed while this one is halted
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    setup = json.loads(source.readline())
    config = BertConfig.from_dict(setup["config"])
    batch = steps.make_batch(Lengths("", tuple(setup["lengths"])), config.vocab_size, "cpu")
    step = steps.our_side(config, batch, getattr(torch, setup["dtype"]), "cpu").run
    for _ in range(2):
        step()
    say("ready")
    for line in source:
        (settling, least), count = json.loads(line), 0
        settled = time.perf_counter() + settling
        while time.perf_counter() < settled:
            step()
        start, used = time.perf_counter(), time.process_time()
        while count < LEAST_STEPS or time.perf_counter() - start < least:
            step()
            count += 1
        taken, used = time.perf_counter() - start, time.process_time() - used
        say({"steps_per_second": count / taken, "cpu_seconds_per_step": used / count})
        while not select.select([source], [], [], 0)[0]:
            step()
        source.readline()
        say("stopped")


if __name__ == "__main__":
    work(sys.stdin, sys.stdout)
