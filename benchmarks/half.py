"""``python -m benchmarks.half``: what bfloat16 and float16 cost over float32 on a CPU that does not
multiply them.

It times a dense layer, forward and backward, by rows. It also times the embedding of short and of
many texts, and a training step without its optimizer.

Libraries read once what the CPU has, so each kind of CPU is a process of its own, emulated by the
variables that they obey.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from bertfast.bench import sentence_embedding, steps, timing
from bertfast.bench.case import differentiated
from bertfast.bench.lengths import Lengths, wikitext
from bertfast.config import EncoderConfig
from bertfast.kernels import linear
from bertfast.machine import describe_machine, versions
from bertfast.model import BertForMaskedLM

from .results import say

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = {
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "BERTFAST_CPU_ISA": "avx2",
    },
    "AVX-512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "BERTFAST_CPU_ISA": "avx512",
    },
}
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
LAYER = (256, 1024)  # of bert-mini
SHORT = (9,)  # tokens of a short text
MODEL = "bert-mini"
WORDS = 2000  # of the made-up texts' vocabulary
ROUNDS = 9

Run = Callable[[], Any]


def layer(rows: int) -> dict[torch.dtype, Run]:
    """Forward and backward of so many rows through a dense layer, by dtype."""
    inner, columns = LAYER
    given = [torch.randn(s) for s in ((rows, inner), (columns, inner), (columns,))]
    dout = torch.randn(rows, columns)
    return {
        dtype: differentiated(
            linear, [x.to(dtype).requires_grad_() for x in given], [dout.to(dtype)]
        )
        for dtype in DTYPES
    }


def embedding(lengths: tuple[int, ...]) -> dict[torch.dtype, Run]:
    """Texts of so many tokens embedded, past tokenization."""
    config = EncoderConfig.preset(MODEL, vocab_size=WORDS)
    texts = sentence_embedding.made_up(Lengths("", lengths), config)
    model = sentence_embedding.random_model(config)
    tokens = model.tokenize(texts)

    def run(dtype: torch.dtype) -> Run:
        own = copy.deepcopy(model).to("cpu", dtype)
        return lambda: own.encode_tokens(tokens, batch_size=sentence_embedding.BATCH)

    return {dtype: run(dtype) for dtype in DTYPES}


def step(lengths: tuple[int, ...]) -> dict[torch.dtype, Run]:
    """Forward and backward of a masked LM in training."""
    config = EncoderConfig.preset(MODEL)
    batch = steps.make_batch(Lengths("", lengths), config.vocab_size, "cpu").packed

    def run(dtype: torch.dtype) -> Run:
        model = BertForMaskedLM(config).to(dtype).train()

        def call() -> None:
            model.zero_grad()
            model(batch, seed=1).loss.backward()

        return call

    return {dtype: run(dtype) for dtype in DTYPES}


def jobs() -> dict[str, Callable[[], dict[torch.dtype, Run]]]:
    """What is measured, by name."""
    many = wikitext(sentence_embedding.BATCH).values
    inner, columns = LAYER
    found: dict[str, Callable[[], dict[torch.dtype, Run]]] = {
        f"layer {inner} to {columns}, {rows} row{'s' if rows > 1 else ''}": lambda rows=rows: layer(
            rows
        )  # type: ignore[misc]
        for rows in ROWS
    }
    clipped = tuple(min(length, sentence_embedding.LONGEST) for length in many)
    return found | {
        f"{MODEL}: one text of {SHORT[0]} tokens embedded": lambda: embedding(SHORT),
        f"{MODEL}: {len(many)} texts of {sum(clipped):,} tokens embedded": lambda: embedding(many),
        f"{MODEL}: a step of {SHORT[0]} tokens": lambda: step(SHORT),
        f"{MODEL}: a step of {4 * SHORT[0]} tokens": lambda: step(4 * SHORT),
        f"{MODEL}: a step of {sum(many[:8]):,} tokens": lambda: step(many[:8]),
    }


def measure(seconds: float, only: str) -> None:
    """In this process, each job's float32 seconds and the ratios to it, round by round; prints a
    line of JSON for each.
    """
    for name, build in jobs().items():
        if only not in name:
            continue
        say(name)
        torch.manual_seed(0)
        sides = [
            timing.Side(str(dtype), "ours" if dtype == torch.float32 else "backend", run)
            for dtype, run in build().items()
        ]
        samples, rounds = timing.prepare(sides, "cpu", seconds, quick=False)
        timing.race(sides, samples, min(rounds, ROUNDS), "cpu")
        summary = timing.summarize(samples)
        kept = {
            side: {key: value[key] for key in ("median", "ratio", "noisy")}
            for side, value in summary.items()
        }
        print(json.dumps([name, kept]), flush=True)


def main() -> int:
    """Measures each kind and prints a table in Markdown; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half", description=__doc__)
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="this alone")
    parser.add_argument("--only", default="", help="jobs in whose name this stands")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each job")
    parser.add_argument("--here", action="store_true", help="as this process finds the CPU")
    options = parser.parse_args()
    if options.here:
        measure(options.seconds, options.only)
        return 0
    found: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "benchmarks.half", "--here"]
    command += ["--seconds", str(options.seconds), "--only", options.only]
    for kind in options.kind or KINDS:
        say(f"a CPU with {kind}, emulated")
        done = subprocess.run(
            command, env=os.environ | KINDS[kind], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            return done.returncode
        found[kind] = dict(json.loads(line) for line in done.stdout.splitlines())
    machine = describe_machine("cpu")
    print(f"{machine['name']}, {machine['threads']} threads, PyTorch {versions()['torch']}\n")
    print("".join(f"{line}\n" for line in table(found)), end="")
    return 0


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Rows of jobs and, for each kind, columns of float32's time and of the others over it."""
    headings = [
        text
        for kind in found
        for text in (f"{kind}: float32, ms", "bfloat16 / float32", "float16 / float32")
    ]
    lines = [f"| | {' | '.join(headings)} |", f"| --- |{' ---: |' * len(headings)}"]
    for name in next(iter(found.values())):
        cells = []
        for jobs_of in found.values():
            sides = jobs_of[name]
            noisy = " ~" if any(side["noisy"] for side in sides.values()) else ""
            wide, *halves = sides.values()
            cells.append(f"{wide['median'] * 1e3:,.3g}{noisy}")
            cells += [f"{half['ratio']['median']:.2f}" for half in halves]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
