"""LAMB and Muon take the steps of their papers, and a run with them resumes bit for bit."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny import run_cli, sentences, write_model

from bertfast.model import load
from bertfast.training.checkpoint import checkpoints
from bertfast.training.optimizer import AdamW
from bertfast.training.other_optimizers import Lamb, Muon, is_hidden

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
ADAM = {"betas": (0.9, 0.99), "epsilon": 1e-6}


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_lamb_takes_the_steps_of_the_plain_formula():
    matrix, bias = weights((4, 3), (3,))
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [bias]}]
    optimizer = Lamb(groups, 0.01, **ADAM)
    plain = [p.detach().double().clone() for p in (matrix, bias)]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in plain]
    for step in range(1, 5):
        for p in (matrix, bias):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        for number, (w, (m, v), decay) in enumerate(zip(plain, moments, (0.1, 0.0), strict=True)):
            g = (matrix, bias)[number].grad.double()
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.99).add_(g * g, alpha=0.01)
            update = m / (1 - 0.9**step) / ((v / (1 - 0.99**step)).sqrt() + 1e-6) + decay * w
            scale = w.norm() / update.norm() if decay else 1.0
            w.sub_(0.01 * scale * update)
    for p, w in zip((matrix, bias), plain, strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_zeros_moves_under_lamb():
    matrix = torch.nn.Parameter(torch.zeros(2, 2))
    matrix.grad = torch.ones(2, 2)
    Lamb([{"params": [matrix], "weight_decay": 0.1}], 0.01, **ADAM).step()
    assert torch.allclose(matrix, torch.full((2, 2), -0.01), atol=1e-4)


@needs_muon
def test_muon_is_pytorchs_for_matrices_and_adamw_for_the_rest():
    matrix, bias = weights((8, 4), (4,))
    own = [p.detach().clone().requires_grad_() for p in (matrix, bias)]
    optimizer = Muon([matrix], [{"params": [bias], "lr": 0.02}], 0.02, 0.1, **ADAM)
    muon = torch.optim.Muon([own[0]], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW([{"params": [own[1]]}], 0.02, betas=(0.9, 0.99), epsilon=1e-6)
    for step in range(4):
        for a, b in zip((matrix, bias), own, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
            for group in optimizer.param_groups:
                group["lr"] = 0.02
    assert torch.equal(matrix, own[0])
    assert torch.equal(bias, own[1])


def test_embeddings_and_heads_are_no_hidden_matrices(tmp_path):
    model = load(write_model(tmp_path / "model"))
    inside = {name for name, p in model.named_parameters() if p.dim() == 2 and is_hidden(name)}
    assert len(inside) == 12
    assert not any("embeddings" in name or "cls" in name for name in inside)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"))
    text = "\n".join(f"{text}.\n" for text, _ in sentences(80))
    Path("corpus.txt").write_text(text)
    return tmp_path


def pretrain(monkeypatch, capfd, out, *options):
    return run_cli(
        monkeypatch,
        capfd,
        *("pretrain", "--data", "corpus.txt", "--model", "model", "--out", out),
        *("--batch-tokens", 96, "--seq-len", 20, "--log-every", 1, "--report-to", "none"),
        *("--objective", "mlm", "--checkpoint-every", 4, *options),
    )


def losses(run):
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.parametrize("optimizer", ["lamb", pytest.param("muon", marks=needs_muon)])
def test_a_run_of_another_optimizer_resumes_bit_for_bit(place, monkeypatch, capfd, optimizer):
    options = ["--steps", 8, "--optimizer", optimizer, "--keep", 2]
    whole = pretrain(monkeypatch, capfd, "whole", *options)
    assert whole.code == 0, whole
    first = losses("whole")
    import shutil

    shutil.rmtree(checkpoints(Path("whole"))[-1])
    again = pretrain(monkeypatch, capfd, "whole", *options, "--resume")
    assert again.code == 0, again
    assert losses("whole") == first


def test_the_sizes_and_rates_of_a_run_follow_their_course(place, monkeypatch, capfd):
    course = ["--steps", 8, "--seq-len-stages", "8:2", "12:2", "--mask-rate", 0.4]
    course += ["--mask-rate-end", 0.1, "--batch-tokens-start", 24, "--batch-warmup", 4]
    done = pretrain(monkeypatch, capfd, "whole", *course, "--accumulation", 2)
    assert done.code == 0, done
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    tokens = [lines[0]["tokens"]]
    tokens += [b["tokens"] - a["tokens"] for a, b in itertools.pairwise(lines)]
    assert tokens[0] <= 2 * 34 < tokens[-1] <= 2 * 96
    first = losses("whole")
    import shutil

    shutil.rmtree(checkpoints(Path("whole"))[-1])
    again = pretrain(monkeypatch, capfd, "whole", *course, "--accumulation", 2, "--resume")
    assert again.code == 0, again
    assert losses("whole") == first


def test_a_branch_decays_from_a_checkpoint_of_another_run(place, monkeypatch, capfd):
    steady = ["--schedule", "wsd", "--warmup", 0, "--keep", 3]
    whole = pretrain(monkeypatch, capfd, "whole", *steady, "--steps", 12, "--decay", 1)
    assert whole.code == 0, whole
    step_4 = Path("whole/checkpoints/step-00000004")
    branch = [*steady, "--branch", step_4]
    done = pretrain(monkeypatch, capfd, "branch", *branch, "--steps", 8, "--decay", 4)
    assert done.code == 0, done
    mine, theirs = losses("branch"), losses("whole")
    assert min(mine) == 5
    assert mine[5] == theirs[5]
    assert mine[7] != theirs[7]
    late = pretrain(monkeypatch, capfd, "late", *branch, "--steps", 4)
    assert (late.code, Path("late").exists()) == (2, False)
    assert "is of step 4, and steps is 4" in late.errors[0]
    Path("corpus.txt").write_text("the film was warm.\n\nthe cast was dull.\n")
    other = pretrain(monkeypatch, capfd, "other", *branch, "--steps", 8)
    assert other.code == 2
    assert "the data changed" in other.errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "step"], "schedule is 'step'"),
        (["--optimizer", "sgd"], "optimizer is 'sgd'; it must be one of adamw, lamb, muon"),
        (["--decay", "3"], "--schedule wsd takes one"),
        (["--schedule", "wsd", "--decay", "30000"], "decay is 30000, and steps 10000"),
        (["--mask-rate", "0"], "mask-rate is 0"),
        (["--mask-rate-end", "1"], "mask-rate-end is 1"),
        (["--batch-warmup", "3"], "go together; give both"),
        (["--batch-tokens-start", "3", "--batch-warmup", "3"], "batch-tokens-start is 3"),
        (["--seq-len-stages", "64"], "seq-len-stages has '64'; each is LENGTH:UPDATES"),
        (["--seq-len-stages", "64:1"], "has 64:1, and seq-len is 20"),
        (["--seq-len-stages", "8:10000"], "some must be left for seq-len"),
        (["--keep", "0"], "keep is 0"),
        (["--branch", "nowhere"], "nowhere"),
    ],
)
def test_a_course_that_cannot_be_is_one_line(place, monkeypatch, capfd, options, message):
    done = pretrain(monkeypatch, capfd, "run", *options)
    assert (done.code, len(done.errors)) == (2, 1)
    assert message in done.errors[0]
    assert not Path("run").exists()
