"""What two parts of every loop are worth: the grid of sizes, in memory, and the worker that makes
batches ahead, in time.

    python -m benchmarks.loops memory
    python -m benchmarks.loops worker
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bertfast
from bertfast.bench.lengths import wikitext
from bertfast.memory import status_bytes
from bertfast.packed import PackedBatch
from bertfast.tokenization import SpecialIds, load_tokenizer, save_tokenizer, train_wordpiece

BATCHES, WORDS = 500, 200


def sentence(draw: random.Random, words: int) -> str:
    """So many words, each a token."""
    return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(words))


def write_tokenizer(folder: Path) -> int:
    """A tokenizer of the words; returns how many entries it has."""
    words = train_wordpiece([f"w{number}" for number in range(WORDS)] * 2, 1000)
    save_tokenizer(words, folder)
    return words.get_vocab_size()


# --- The grid of sizes ---


def measure_loop(loop: str, grid: str, model: str, batch_size: int) -> None:
    """Runs a loop over `BATCHES` batches of random lengths; prints how many MiB it has added past
    the tenth. Float32 products go to oneDNN, as they do on AMD's processors with AVX-512.
    """
    import torch

    from bertfast.kernels import products
    from bertfast.model.models import EncoderModel
    from bertfast.training import predict

    marks: list[float] = []
    sizes: set[int] = set()
    encode = EncoderModel.encode

    def look(self: Any, *inputs: Any, **options: Any) -> Any:
        encoded = encode(self, *inputs, **options)
        marks.append(status_bytes("VmRSS") / 2**20)
        sizes.add(encoded.batch.num_tokens)
        return encoded

    EncoderModel.encode = look  # type: ignore[method-assign]
    products._mkl_is_half_as_wide = lambda: True  # type: ignore[assignment]
    if grid == "off":
        PackedBatch.on_grid = lambda self: self  # type: ignore[method-assign]
    draw = random.Random(0)
    rows = [
        (sentence(draw, draw.randrange(4, 125)), row % 2) for row in range(BATCHES * batch_size)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        config = bertfast.BertConfig.preset(model, vocab_size=write_tokenizer(folder / "model"))
        bertfast.BertForSequenceClassification(config).save_pretrained(folder / "model")
        for part, kept in (("train", rows), ("dev", rows[:8])):
            table = "".join(f"{text}\t{label}\n" for text, label in kept)
            (folder / f"{part}.tsv").write_text(f"sentence\tlabel\n{table}")
        start = time.monotonic()
        if loop == "finetune":
            files = (folder / part for part in ("model", "train.tsv", "dev.tsv", "tuned"))
            bertfast.finetune(*files, epochs=1, batch_size=batch_size)
        else:
            predict.BATCH_TOKENS = 64 * batch_size
            predictor = predict.Predictor(folder / "model")
            predictor.predict(predictor.read(folder / "train.tsv"))
        seconds = time.monotonic() - start
    print(
        json.dumps(
            {
                "loop": loop,
                "grid": grid,
                "batches": len(marks),
                "sizes": len(sizes),
                "added_mib": round(marks[-1] - marks[10]),
                "seconds": round(seconds),
            }
        )
    )


def memory(arguments: argparse.Namespace) -> None:
    """Each loop with the grid and without it, each in a process of its own."""
    for loop in ("finetune", "predict"):
        for grid in ("off", "on"):
            command = [sys.executable, "-m", "benchmarks.loops", "loop", loop, grid]
            command += [arguments.model, str(arguments.batch_size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(done.stdout.splitlines()[-1], flush=True)


# --- The worker ---


@contextmanager
def in_a_process(items: Iterator[Any], count: int) -> Iterator[Iterator[Any]]:
    """`bertfast.training.prefetch.ahead` with a process in the thread's place."""
    import torch.multiprocessing

    context = torch.multiprocessing.get_context("fork")
    made = context.Queue(count)

    def work() -> None:
        import torch

        torch.set_num_threads(1)
        for item in items:
            made.put(item)

    worker = context.Process(target=work, daemon=True)
    worker.start()
    try:
        yield iter(made.get, None)
    finally:
        worker.kill()
        worker.join()


def batches(folder: Path, tokens: int, vocabulary: int) -> Any:
    """Batches of a corpus whose paragraphs have WikiText's lengths."""
    from bertfast.data.packing import Batches
    from bertfast.data.store import TokenStore

    words, draw = load_tokenizer(folder), random.Random(0)
    lengths = wikitext(tokens).values
    text = "\n\n".join(sentence(draw, max(1, length - 2)) for length in lengths)
    (folder / "corpus.txt").write_text(text)
    store = TokenStore.build((str(folder / "corpus.txt"),), words, folder / "tokens", "text")
    return Batches(store, SpecialIds(words, folder), vocabulary, 512, tokens, "mlm")


class Measured(NamedTuple):
    """Tokens a second, and microseconds of the step's own thread a token."""

    speed: float
    own: float


def worker(arguments: argparse.Namespace) -> None:
    """The training step under each way to make its batches, and the making alone; the ways take
    turns. The processor time of the step's own thread tells what a GPU would wait for, whatever
    else the machine does.
    """
    import torch

    from bertfast.training.prefetch import ahead

    ways: dict[str, Callable[[Iterator[Any]], AbstractContextManager[Iterator[Any]]]] = {
        "when due": lambda items: ahead(items, 0),
        "thread": lambda items: ahead(items, 2),
        "process": lambda items: in_a_process(items, 2),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_tokenizer(folder)
        made = batches(folder, arguments.tokens, 30522)
        torch.manual_seed(0)
        config = bertfast.BertConfig.preset(arguments.model, vocab_size=max(size, 30522))
        net = bertfast.BertForMaskedLM(config).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def step(batch: PackedBatch) -> None:
            net(batch, seed=0).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def measure(way: str, work: Callable[[PackedBatch], None], count: int) -> Measured:
            with ways[way](made.iterate()) as items:
                for _ in range(3):
                    work(next(items)[1])
                start, own, tokens = time.perf_counter(), time.thread_time(), 0
                for _ in range(count):
                    batch = next(items)[1]
                    work(batch)
                    tokens += batch.num_tokens
                took, own = time.perf_counter() - start, time.thread_time() - own
                return Measured(tokens / took, own / tokens * 1e6)

        for what, work, count in (
            ("the step", step, arguments.steps),
            ("the batches alone", lambda batch: None, 20 * arguments.steps),
        ):
            rounds = [
                {way: measure(way, work, count) for way in ways} for _ in range(arguments.rounds)
            ]
            for way in ways:
                speed = statistics.median(found[way].speed for found in rounds)
                own = [found[way].own for found in rounds]
                print(
                    f"{what:<18} {way:<9} {speed:>12,.0f} tok/s, of the step's own thread"
                    f" {statistics.median(own):>8.2f} us a token"
                    f" ({min(own):.2f} to {max(own):.2f})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("memory")
    one.add_argument("--model", default="bert-mini")
    one.add_argument("--batch-size", type=int, default=8)
    one.set_defaults(run=memory)
    two = commands.add_parser("worker")
    two.add_argument("--model", default="bert-tiny")
    two.add_argument("--tokens", type=int, default=4096, help="of a batch")
    two.add_argument("--steps", type=int, default=10, help="of a way in a round")
    two.add_argument("--rounds", type=int, default=7)
    two.set_defaults(run=worker)
    loop = commands.add_parser("loop")
    for name in ("loop", "grid", "model"):
        loop.add_argument(name)
    loop.add_argument("batch_size", type=int)
    loop.set_defaults(run=lambda a: measure_loop(a.loop, a.grid, a.model, a.batch_size))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
