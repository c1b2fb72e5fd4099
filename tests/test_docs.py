"""The pages: every block of code on them runs, with small models and made-up text."""

from __future__ import annotations

import glob
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli, sentences, write_model, write_table

from bertfast.model import BertForMaskedLM, BertForSequenceClassification, BertModel
from support import REPOSITORY

PAGES = [
    "README.md",
    *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md")),
]
RUN = ("python", "sh")
SHEET = "yaml"  # what a block of sheet.yaml is marked as
# A page whose blocks take minutes even so.
SLOW = (
    *(f"docs/guides/{name}.md" for name in ("comparing", "measuring", "pretraining")),
    *("docs/cpu.md", "docs/results.md"),
)
# What a page's blocks take as given, beside the files that every page has.
GIVEN = {
    "docs/guides/adapters.md": ("run",),
    "docs/guides/classification.md": ("run",),
    "docs/guides/comparing.md": ("run",),
    "docs/guides/export.md": ("run",),
    "docs/guides/multiple-choice.md": ("run",),
    "docs/guides/pretraining.md": ("teacher",),
    "docs/guides/question-answering.md": ("run",),
    "docs/guides/token-classification.md": ("run",),
    "docs/reference/command-line.md": ("run",),
}
SMALLER = (
    (r"--steps \d+", "--steps 4"),
    (r"steps=[\d_]+", "steps=4"),
    (r"--warmup \d+", "--warmup 1"),
    (r"--epochs \d+", "--epochs 1"),
    (r"\bsteps: \d+", "steps: 4"),
    (r"\bepochs: \d+", "epochs: 1"),
    (r"\bseeds: \d+", "seeds: 1"),
    (r"labels: \[.*\]", "labels: [all]"),
    (r"--seconds \d+", "--seconds 0.05"),
    (r"--vocab-size \d+", "--vocab-size 300"),
    (r"--log-every \d+", "--log-every 1"),
    (r"\bbert-(mini|small|base)\b", "bert-tiny"),
    (r"--shape distilbert-base", "--shape distilbert.json"),
    (r"--shape electra-small", "--shape electra.json"),
    (r"bertfast bench", "bertfast bench --seconds 0.01 --no-compiled"),
)
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 128,  # of which ELECTRA's generator has a quarter
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "albert.json": {"model_type": "albert", "embedding_size": 16, **SHAPE},
    "electra.json": {"model_type": "electra", "embedding_size": 16, **SHAPE},
    "distilbert.json": {
        "model_type": "distilbert",
        "vocab_size": 300,
        "dim": 128,  # its teacher's
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 128,
    },
}

ANSWER = {"text": ["warm"], "answer_start": [13]}
QUESTION = {"question": "was it warm?", "context": "the film was warm", "answers": ANSWER}
CHOICES = {"question": "the film was", "choices": ["warm", "cold"], "answer": 0}
LABELLED = {  # the training and the dev data of a page, by the ending of their names
    "docs/guides/multiple-choice.md": {".jsonl": f"{json.dumps(CHOICES)}\n" * 8},
    "docs/guides/question-answering.md": {".json": f"{json.dumps(QUESTION)}\n" * 8},
    "docs/guides/token-classification.md": {".conll": "the\tO\nfilm\tB-THING\nwas\tO\n\n" * 8},
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its fence, the word behind that, and what it holds."""

    line: int
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a fence has no end, or code is marked by its indentation alone.
    """
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    previous = ""
    in_list = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if opened is not None:
            if line.strip() == "```":
                found.append(Block(*opened, "".join(f"{text}\n" for text in lines)))
                opened, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            opened = number, line[3:].strip()
        elif line.startswith("    ") and not previous.strip() and not in_list:
            raise ValueError(f"line {number}: code must stand in a fence that says its language")
        if line.strip() and not line.startswith(" "):
            in_list = re.match(r"[-*] |\d+\. ", line) is not None
        previous = line
    if opened is not None:
        raise ValueError(f"line {opened[0]}: the fence has no end")
    return found


def read(page: str) -> list[Block]:
    return blocks((REPOSITORY / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    previous = None
    for block in read(page):
        where = f"{page}:{block.line}"
        if block.language == "text":
            assert previous in (*RUN, "text"), f"{where}: text is the output of a block above it"
        else:
            assert block.language in (*RUN, SHEET), f"{where}: mark it as one of {RUN}, or as text"
        previous = block.language


@pytest.mark.parametrize(
    ("markdown", "message"),
    [("words\n\n    bertfast demo\n", "line 3: code must"), ("```sh\nmake\n", "line 1: the fence")],
)
def test_code_that_no_test_would_run_is_seen(markdown: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks(markdown)


def test_a_list_may_be_indented() -> None:
    assert blocks("- one\n\n    more of one\n\n```sh\nmake demo\n```\n") == [
        Block(5, "sh", "make demo\n")
    ]


def smaller(code: str) -> str:
    """The same with few steps and small models."""
    for pattern, text in SMALLER:
        code = re.sub(pattern, text, code)
    return code


def write_esm(folder: Path) -> None:
    """A small ESM, whose attention goes through the interface of `transformers`."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    left_out = ("max_position_embeddings", "vocab_size")
    shape = {name: value for name, value in SHAPE.items() if name not in left_out}
    config = transformers.EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, **shape)
    transformers.EsmModel(config).save_pretrained(folder)


def furnish(page: str) -> None:
    """Puts the files that a page names into the current folder."""
    rows = [(text, label) for text, label in sentences(60)]
    corpus = "\n".join(
        f"{text}.\nthe [cast] of the year\n" + "\n" * (number % 5 == 4)
        for number, (text, _) in enumerate(sentences(120, seed=1))
    )
    for name in ("corpus.txt", "valid.txt", "test.txt", "held-out.txt", "books/one.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(corpus, encoding="utf-8")
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        write_table(Path(name), rows)  # type: ignore[arg-type]
    Path("sentences.txt").write_text("".join(f"{text}\n" for text, _ in rows), encoding="utf-8")
    Path("lengths.txt").write_text("3\n9\n5\n", encoding="utf-8")
    for name, config in CONFIGS.items():
        Path(name).write_text(json.dumps(config), encoding="utf-8")
    write_model(Path("path/to/model"), BertForSequenceClassification)
    write_model(Path("path/to/all-MiniLM-L6-v2"), BertModel)
    if page == "docs/drop-in.md":
        write_esm(Path("path/to/esm"))
    scored = [(a, b, str(n % 6)) for n, ((a, _), (b, _)) in enumerate(pairwise(rows))]
    for name in ("scored.tsv", "scored-dev.tsv"):
        write_table(Path(name), scored, ("sentence1", "sentence2", "score"))  # type: ignore[arg-type]
    sample = {"query": rows[0][0], "positive": [rows[1][0]], "negative": [rows[2][0], rows[3][0]]}
    Path("triplets.jsonl").write_text(f"{json.dumps(sample)}\n" * 8, encoding="utf-8")
    write_table(Path("pairs.tsv"), [row[:2] for row in scored], ("anchor", "positive"))
    for name, text in LABELLED.get(page, {}).items():
        for part in ("train", "dev"):
            Path(f"{part}{name}").write_text(text, encoding="utf-8")
    for name in GIVEN.get(page, ()):
        write_model(Path(name), BertForMaskedLM, hidden_size=128, max_position_embeddings=128)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES]
)
def test_every_block_runs(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(page)
    names: dict[str, Any] = {}
    for block in read(page):
        where = f"{page}:{block.line}"
        if block.language == "python":
            exec(compile(smaller(block.text), where, "exec"), names)
        elif block.language == SHEET:
            Path("sheet.yaml").write_text(smaller(block.text), encoding="utf-8")
        elif block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                run_line(line, where, monkeypatch, capfd)


def run_line(
    line: str, where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line of shell: ``bertfast`` in this process, ``make`` without doing it, ``pip`` looked
    up.
    """
    words = shlex.split(smaller(line), comments=True)
    if not words:
        return
    if words[0] == "echo":
        pipe = words.index("|")
        said = f"{' '.join(words[1:pipe])}\n".encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
        words = words[pipe + 1 :]
    expanded = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
    match expanded:
        case ["bertfast", "serve" | "app", *_]:  # which end when they are told to
            done = run_cli(monkeypatch, capfd, *expanded[1:], "--print-config")
            assert done.code == 0, f"{where}: {line}\n{done.err}"
        case ["curl", *arguments]:
            answer = curl(arguments)
            assert answer.status_code == 200, f"{where}: {line}\n{answer.text}"
        case ["docker", *_]:
            assert (REPOSITORY / "Dockerfile").exists()
            assert (REPOSITORY / "compose.yaml").exists()
        case ["bertfast", *arguments]:
            done = run_cli(monkeypatch, capfd, *arguments)
            assert done.code == 0, f"{where}: {line}\n{done.err}"
        case ["make", target]:
            assert shutil.which("make"), "make is not installed"
            done = subprocess.run(
                ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
        case ["pip", "install", what]:
            project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
            name, _, extras = what.removesuffix("]").partition("[")
            assert name in (".", project["name"])
            assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])
        case _:
            pytest.fail(f"{where}: no test knows how to run {line!r}")


def curl(arguments: list[str]) -> Any:
    """The answer of a server of two small models to ``curl ADDRESS [-d BODY]``."""
    servers = pytest.importorskip("servers", reason="the server is an extra")
    place = arguments.index("-d") if "-d" in arguments else None
    body = None if place is None else arguments[place + 1]
    address = next(word for word in arguments if word.startswith("http://"))
    path = "/" + address.partition("://")[2].partition("/")[2]
    folders = [Path("path/to/all-MiniLM-L6-v2"), Path("path/to/model")]
    with servers.client_of(servers.local_server(folders)) as client:
        return client.get(path) if body is None else client.post(path, content=body)


def test_the_readme_fits_two_screens_and_says_how_to_try_it() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert {"make demo", "make test"} <= set(text.splitlines())


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_are_wrapped_at_100_columns(page: str) -> None:
    inside, long = False, []
    for number, line in enumerate((REPOSITORY / page).read_text("utf-8").splitlines(), 1):
        inside ^= line.startswith("```")
        # Tables, pictures and commands cannot be broken.
        if len(line) > 100 and not inside and not line.startswith(("|", "!", "[")):
            long.append(number)
    assert not long, f"{page}: lines {long}"


def test_no_page_names_a_file_that_is_not_there() -> None:
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                place = (REPOSITORY / page).parent / target
                assert place.resolve().exists(), f"{page}: {target}"


def test_the_settings_page_lists_every_variable_that_is_read() -> None:
    read_here = set()
    for folder in ("bertfast", "kernels", "csrc"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h"):
                read_here |= set(
                    re.findall(
                        r"(?:environ|getenv)\W{1,3}(?:get\W{1,2})?\"?(BERTFAST_\w+)",
                        path.read_text("utf-8"),
                    )
                )
    page = (REPOSITORY / "docs/reference/settings.md").read_text(encoding="utf-8")
    assert {"BERTFAST_BACKEND", "BERTFAST_CPU_ISA", "BERTFAST_CACHE"} <= read_here
    for name in read_here:
        assert f"`{name}`" in page
