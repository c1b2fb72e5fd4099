"""A corpus is prepared once: the same shards whoever tokenizes, after any kill, with any number of
workers; and what cannot be used is said in one line.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import run_cli

from bertfast import BertfastError
from bertfast.data import prepare as module
from bertfast.data.prepare import prepare
from bertfast.data.shards import JOURNAL, ShardedStore
from bertfast.data.store import TokenStore
from bertfast.tokenization import save_tokenizer, train_wordpiece

WORDS = ["fox", "den", "dog", "bird", "tree", "river", "stone", "cloud"]
TOKENIZER = train_wordpiece([" ".join(WORDS) + " . ! 0123456789"], 120)


def make_text(documents, seed=0):
    draw = random.Random(seed)

    def line():
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 30))) + draw.choice(".!")

    return "\n\n".join(
        "\n".join(line() for _ in range(draw.randint(1, 6))) for _ in range(documents)
    )


@pytest.fixture
def place(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path / "tok")
    (tmp_path / "texts").mkdir()
    for n in range(3):
        (tmp_path / "texts" / f"{n}.txt").write_text(make_text(150, n))
    return tmp_path


def made(place, out="store", **options):
    data = options.pop("data", [place / "texts"])
    return prepare(data, place / "tok", place / out, **{"workers": 1, **options})


def files(folder):
    """Every file of a store, but for what names its own folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_store_holds_what_a_token_store_of_the_files_holds(place):
    done = made(place)
    paths = sorted((place / "texts").iterdir())
    wanted = TokenStore.build(paths, TOKENIZER, place / "plain")
    (shard,) = ShardedStore(str(place / "store")).shards
    found = ShardedStore(str(place / "store")).load([shard])
    for name in ("ids", "sentences", "documents"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    assert found.ids.dtype == wanted.ids.dtype
    assert (done.tokens, done.documents) == (wanted.num_tokens, wanted.num_documents)


def test_shards_are_bounded_and_hold_every_document_once(place):
    made(place, "whole")
    made(place, shard_tokens=4096)
    whole, parts = (ShardedStore(str(place / name)) for name in ("whole", "store"))
    assert len(parts.shards) > 3
    assert all(shard.tokens <= 4096 for shard in parts.shards)
    for name in ("ids", "sentences", "documents"):
        one, several = (getattr(store.load(store.shards), name) for store in (whole, parts))
        assert np.array_equal(one, several[np.arange(len(several))])


def test_a_document_longer_than_a_shard_goes_on_in_the_next(place):
    (place / "long.txt").write_text(" ".join(WORDS * 4000))
    made(place, data=[place / "long.txt"], shard_tokens=4096)
    store = ShardedStore(str(place / "store"))
    assert [shard.documents for shard in store.shards] == [1] * len(store.shards)
    assert store.num_tokens == 32000
    assert all(shard.tokens <= 4096 for shard in store.shards)


def test_a_failure_anywhere_loses_nothing_and_repeats_nothing(place, monkeypatch):
    """The writing of a shard fails before it, within it, and after it, once each."""
    made(place, "wanted", shard_tokens=4096, drop_duplicates=True)
    write, commit, fails = module.write_shard, module._Journal.commit, {2, 3, 5, 8}
    calls = []

    def failing(of):
        def called(*arguments):
            calls.append(of)
            if len(calls) in fails:
                raise KeyboardInterrupt
            return of(*arguments)

        return called

    monkeypatch.setattr(module, "write_shard", failing(write))
    monkeypatch.setattr(module._Journal, "commit", failing(commit))
    for _ in fails:
        with pytest.raises(KeyboardInterrupt):
            made(place, shard_tokens=4096, drop_duplicates=True)
        with pytest.raises(BertfastError, match="is a store that is not finished"):
            ShardedStore(str(place / "store"))
    made(place, shard_tokens=4096, drop_duplicates=True)
    assert files(place / "store") == files(place / "wanted")


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_what_goes_on_to_the_same_store(place):
    (place / "texts" / "more.txt").write_text(make_text(8_000, 9))
    command = [sys.executable, "-m", "bertfast", "prepare", "--data", place / "texts"]
    command += ["--tokenizer", place / "tok", "--shard-tokens", "25000", "--workers", "2"]
    draw = random.Random(0)
    made(place, "wanted", shard_tokens=25_000)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            [*map(str, command), "--out", str(place / "store")], stderr=subprocess.DEVNULL
        )
        before = set(place.glob("store/shard-*"))
        while process.poll() is None and set(place.glob("store/shard-*")) == before:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([*map(str, command), "--out", str(place / "store")], check=True)
    assert kills > 0
    assert files(place / "store") == files(place / "wanted")


@pytest.mark.slow
def test_processes_make_the_shards_that_one_makes(place):
    made(place, "wanted", shard_tokens=4096)
    made(place, workers=2, shard_tokens=4096)
    assert files(place / "store") == files(place / "wanted")


@pytest.mark.slow
def test_ray_makes_the_shards_that_one_process_makes(place):
    pytest.importorskip("ray")
    made(place, "wanted", shard_tokens=4096)
    made(place, engine="ray", workers=2, shard_tokens=4096)
    assert files(place / "store") == files(place / "wanted")


def test_a_finished_store_is_verified_and_not_made_again(place, capsys):
    first = made(place)
    before = files(place / "store")
    assert made(place) == first
    assert "is complete; every checksum is right" in capsys.readouterr().err
    assert files(place / "store") == before
    with pytest.raises(BertfastError, match="exists already, of other text"):
        made(place, shard_tokens=4096)


def test_a_store_begun_with_other_options_is_refused(place, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_shard", fails)
        with pytest.raises(BertfastError, match="cannot be written .*No space left.*goes on"):
            made(place)
    with pytest.raises(BertfastError, match="was begun with other text"):
        made(place, shard_tokens=4096)
    made(place)
    assert not (place / "store" / JOURNAL).exists()


def test_duplicates_are_left_out_on_request(place):
    texts = ["fox den.", "dog bird.", "fox den.", "fox\nden.", "dog bird."]
    (place / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert made(place, data=[place / "a.jsonl"]).documents == 5
    done = made(place, "b", data=[place / "a.jsonl"], drop_duplicates=True)
    assert (done.documents, done.duplicates) == (3, 2)
    assert made(place, "b", data=[place / "a.jsonl"], drop_duplicates=True) == done


def test_near_duplicates_are_left_out_on_request(place):
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    words = [f"{word} {n}" for n in range(30) for word in WORDS]
    text = " ".join(draw.sample(words, 100))
    near, far = text.replace("fox", "dog", 1), " ".join(draw.sample(words, 100))
    (place / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in (text, far, near, text))
    )
    done = made(place, data=[place / "a.jsonl"], near_duplicates=0.7)
    assert (done.documents, done.near_duplicates) == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "workers is 0; it must be at least 1"),
        (["--shard-tokens", "10"], "shard-tokens is 10; it must be at least 4096"),
        (["--drop-near-duplicates", "1.5"], "drop-near-duplicates is 1.5"),
        (["--engine", "spark"], "engine is 'spark'; it must be one of local, ray"),
        (["--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--text-field", "body"], "0.txt"),
        (["--out", "s3://bucket/store"], "out is a folder on this machine"),
        (["--out", "."], "holds other things"),
    ],
)
def test_what_cannot_be_used_is_one_line(place, options, message, monkeypatch, capfd):
    monkeypatch.chdir(place)
    given = {"--data": "texts", "--tokenizer": "tok", "--out": "store", "--workers": "1"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    if "--text-field" in given:
        given["--data"] = "a.jsonl"
        Path("a.jsonl").write_text('{"text": "fox"}\n')
        message = "a.jsonl, line 1: has no text in the field 'body'; its fields are text"
    done = run_cli(monkeypatch, capfd, "prepare", *(x for pair in given.items() for x in pair))
    assert done.code == 2
    assert len(done.errors) == 1
    assert message in done.errors[0]


def test_the_command_says_what_it_made(place, monkeypatch, capfd):
    done = run_cli(
        monkeypatch,
        capfd,
        *("prepare", "--data", place / "texts", "--tokenizer", place / "tok"),
        *("--out", place / "store", "--workers", 1, "--drop-duplicates"),
    )
    assert done.code == 0, done
    assert "documents in 1 shard" in done.out
