"""Many ranks: where each process stands, and runs of real processes over gloo. One, two and four
ranks reach the same losses, a rank that is lost ends all with one line, and the run goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import sentences, write_model

from bertfast.errors import BertfastError
from bertfast.ranks import Place, Ranks, find_place, first_host
from bertfast.training.metrics import read_metrics

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[003-010,012],login1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
}
OPTIONS = "--steps 50 --batch-tokens 96 --seq-len 24 --accumulation 4 --log-every 1 --lr 1e-3"
SHAPE = {
    "model_type": "bert", "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 24,
}  # fmt: skip
SEEN = {"loss", "mlm_loss", "nsp_loss", "rtd_loss", "soft_loss", "cosine_loss", "gradient_norm"}


def test_torchrun_and_srun_say_which_rank_this_is():
    assert find_place({}) == Place()
    assert find_place(TORCHRUN) == Place(3, 8, 1, "node7", 29500, serves=False)
    first = TORCHRUN | {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert find_place(first).serves
    assert find_place(first).restarts == 2
    # torchrun's agent keeps the store, and outlives rank 0.
    assert not find_place(first | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).serves
    place = find_place(SRUN)
    assert (place.rank, place.size, place.address, place.serves) == (0, 8, "gpu003", True)
    assert place.port != find_place(SRUN | {"SLURM_STEP_ID": "1"}).port
    # A batch script is no step of srun's.
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[01-04]", "n01"), ("n[5,7]-ib,m1", "n5-ib"), ("", "127.0.0.1")],
)
def test_the_first_host_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"RANK": "x"}, {"LOCAL_RANK": "-1"}])
def test_a_launchers_variables_are_checked(wrong):
    with pytest.raises(BertfastError, match=r"RANK|rank"):
        find_place(TORCHRUN | wrong)


def test_a_process_alone_is_asked_nothing(tmp_path):
    ranks = Ranks()
    assert ranks.first
    assert ranks.speaks()
    with ranks.joined(None, tmp_path) as same:
        assert same is ranks
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    text = "\n".join(
        text + "\n" * (number % 5 == 0) for number, (text, _) in enumerate(sentences(400))
    )
    (folder / "text.txt").write_text(text)
    write_model(folder / "tok")
    size = json.loads((folder / "tok" / "config.json").read_text())["vocab_size"]
    (folder / "shape.json").write_text(json.dumps(SHAPE | {"vocab_size": size}))
    electra = SHAPE | {"model_type": "electra", "embedding_size": 32, "vocab_size": size}
    (folder / "electra.json").write_text(json.dumps(electra))
    return folder


def command(place: Path, out: str, ranks: int, *more: str, launcher: str = "") -> list[str]:
    """A run on so many ranks."""
    own = f"--data {place}/text.txt --tokenizer {place}/tok --out {place}/{out} --report-to none"
    shape = [] if "--shape" in more else ["--shape", f"{place}/shape.json"]
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
        start += ["--rdzv-endpoint", "127.0.0.1:0", *launcher.split(), "-m"]
    return [*start, "bertfast", "pretrain", *OPTIONS.split(), *own.split(), *shape, *more]


def run(place: Path, out: str, ranks: int, *more: str, **options: str) -> Any:
    return subprocess.run(
        command(place, out, ranks, *more, **options),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = read_metrics(one), read_metrics(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & SEEN:
            # A soft loss is the small difference of two larger numbers.
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), (a["step"], name)
        for name in ("tokens", "epoch", "mlm_accuracy"):
            assert a[name] == b[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mlm+nsp", ()),
        ("rtd", ("--shape", "electra.json", "--steps", "8")),
        ("distill", ("--objective", "distill", "--teacher", "tok", "--steps", "8")),
    ],
)
def test_one_two_and_four_ranks_reach_the_same_losses(place, name, more):
    options = [str(place / value) if value in ("electra.json", "tok") else value for value in more]
    counts = (1, 2, 4) if name == "mlm+nsp" else (1, 2)
    for ranks in counts:
        done = run(place, f"{name}-{ranks}", ranks, *options)
        assert done.returncode == 0, done.stderr
        if ranks > 1:
            assert_same_run(place / f"{name}-1", place / f"{name}-{ranks}")
            assert "heaviest rank +" in done.stderr
            assert done.stdout.count(": step ") == 1


@pytest.mark.slow
def test_a_killed_rank_ends_all_with_one_line_and_others_go_on(place):
    whole = run(place, "whole", 1)
    assert whole.returncode == 0, whole.stderr
    out = place / "killed"
    process = subprocess.Popen(
        command(place, "killed", 2, "--checkpoint-every", "5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not (out / "checkpoints" / "step-00000010").exists():
        time.sleep(0.02)
    os.kill(child_of(process.pid, 1), signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert len(errors(said)) == 1, said
    assert "rank 1 of 2 is lost; checkpoints are kept" in said
    assert "exitcode  : 2" in said
    resumed = run(place, "killed", 4, "--checkpoint-every", "5", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(place / "whole", out)


@pytest.mark.slow
def test_torchrun_goes_on_by_itself(place):
    out = place / "restarted"
    process = subprocess.Popen(
        command(place, "restarted", 2, "--checkpoint-every", "5", launcher="--max-restarts 1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not (out / "checkpoints" / "step-00000005").exists():
        time.sleep(0.02)
    os.kill(child_of(process.pid, 0), signal.SIGKILL)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert [line["step"] for line in read_metrics(out)] == list(range(1, 51))


@pytest.mark.slow
def test_ranks_that_hang_leave_their_stacks(place):
    (place / "stuck.py").write_text(
        "import os, time\n"
        "from bertfast import Objective, register_objective\n"
        "@register_objective\n"
        "class Stuck(Objective):\n"
        "    name, made = 'stuck', 0\n"
        "    def finish(self, batch, spans, rows):\n"
        "        Stuck.made += 1\n"
        "        while os.environ['RANK'] == '1' and Stuck.made > 9:\n"
        "            time.sleep(1)\n"
        "        return batch\n"
    )
    more = ("--import", str(place / "stuck.py"), "--objective", "stuck", "--rank-timeout", "5")
    done = run(place, "stuck", 2, *more)
    assert len(errors(done.stderr)) == 1, done.stderr
    assert "no step was done for 5 s" in done.stderr
    stacks = [(place / "stuck" / "stacks" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "finish" in stacks[1]
    assert "finish" not in stacks[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--accumulation", "3"), "Take --accumulation 4"),
        (("--lr", "1e30", "--warmup", "0", "--clip-norm", "1e38"), "the loss is nan"),
    ],
)
def test_a_fault_of_all_ranks_is_one_line(place, more, said):
    done = run(place, f"fault-{len(more)}", 2, *more)
    assert len(errors(done.stderr)) == 1, done.stderr
    assert said in errors(done.stderr)[0]
    assert "exitcode  : 2" in done.stderr
    assert "Error:" not in done.stderr.replace("ChildFailedError:", "")


@pytest.mark.slow
def test_a_rank_with_other_options_is_named(place):
    """As srun starts ranks: rank 0 keeps the store."""
    ranks = []
    for rank in (0, 1):
        slurm = SRUN | {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2"}
        slurm |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(os.getpid() % 300)}
        more = ("--lr", "1e-3" if rank == 0 else "2e-3")
        ranks.append(
            subprocess.Popen(
                command(place, "differing", 1, *more),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | slurm,
            )
        )
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2], said
    assert len(errors("\n".join(said))) == 1, said
    assert "has option lr 0.002, and rank 0 has 0.001" in said[1]


def child_of(parent: int, rank: int) -> int:
    """The process of a rank that torchrun started."""
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if above == parent and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")
