"""Distillation's losses are those of plain PyTorch, with their gradients; the student starts from
layers spread over the teacher's.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from bertfast import BertfastError
from bertfast.objectives import distillation
from bertfast.objectives.distillation import cosine_loss, distillation_loss, teacher_layers
from bertfast.packed import PackedBatch


def make(masked=23, vocab=50, hidden=6, teacher_hidden=9, dtype=torch.float64):
    """The student's tensors, the teacher's, and which rows count."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (masked, hidden),
        (vocab, hidden),
        (vocab,),
        (masked, teacher_hidden),
        (vocab, teacher_hidden),
        (vocab,),
    ]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]
    return (
        [x.requires_grad_() for x in tensors[:3]],
        tensors[3:],
        torch.rand(masked, generator=generator) < 0.8,
    )


def plain(student, teacher, counted, temperature):
    logits, targets = (F.linear(*side)[counted] / temperature for side in (student, teacher))
    return (
        F.kl_div(logits.log_softmax(1), targets.softmax(1), reduction="batchmean") * temperature**2
    )


@pytest.fixture(params=[1, 5, 1000])
def blocked(request, monkeypatch):
    """Rows in blocks of so many."""
    height = request.param
    monkeypatch.setattr(
        distillation,
        "row_blocks",
        lambda rows, *_: [
            slice(i, min(i + height, len(rows))) for i in range(0, len(rows), height)
        ],
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_loss_and_its_gradients_are_those_of_plain_pytorch(temperature, with_bias, blocked):
    student, teacher, counted = make()
    if not with_bias:
        student[2] = teacher[2] = None
    inputs = [x for x in student if x is not None]
    loss = distillation_loss(*student, *teacher, counted, temperature)
    wanted = plain(student, teacher, counted, temperature)
    torch.testing.assert_close(loss, wanted)
    got, expected = (torch.autograd.grad(5 * x, inputs) for x in (loss, wanted))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near_float64(dtype, tolerance):
    student, teacher, counted = make(dtype=dtype)
    loss = distillation_loss(*student, *teacher, counted)
    loss.backward()
    exact = [x.detach().double().requires_grad_() for x in student]
    wanted = plain(exact, [x.double() for x in teacher], counted, 2.0)
    wanted.backward()
    assert loss.dtype == torch.float32
    assert abs(float((loss - wanted).detach())) < tolerance * float(wanted.detach())
    for got, expected in zip(student, exact, strict=True):
        assert got.grad.dtype == dtype
        assert (got.grad - expected.grad).norm() < tolerance * expected.grad.norm()


def test_autocast_changes_nothing():
    student, teacher, counted = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distillation_loss(*student, *teacher, counted)
    assert torch.equal(inside, distillation_loss(*student, *teacher, counted))


def test_a_teacher_that_agrees_teaches_nothing():
    student, _, counted = make()
    loss = distillation_loss(*student, *(x.detach() for x in student), counted)
    assert abs(loss.item()) < 1e-12
    assert all(float(x.abs().max()) < 1e-12 for x in torch.autograd.grad(loss, student))


def test_no_rows_give_no_loss_and_no_gradient():
    student, teacher, counted = make()
    for rows in (0, 23):
        parts = [student[0][:rows], *student[1:], teacher[0][:rows], *teacher[1:]]
        loss = distillation_loss(*parts, torch.zeros_like(counted[:rows]))
        assert loss.item() == 0
        assert all(not x.any() for x in torch.autograd.grad(loss, student))


def test_without_gradients_none_are_made():
    student, teacher, counted = make()
    with torch.no_grad():
        assert not distillation_loss(*student, *teacher, counted).requires_grad


def test_vocabularies_of_other_sizes_are_refused():
    student, teacher, counted = make()
    with pytest.raises(
        BertfastError, match="teacher's vocabulary has 49 entries and the student's 50"
    ):
        distillation_loss(*student, teacher[0], teacher[1][:49], teacher[2][:49], counted)


@pytest.mark.parametrize("slack", [0, 4])
def test_the_cosine_loss_is_pytorchs_over_the_real_tokens(slack):
    batch = PackedBatch.from_sequences([[1] * 7, [], [2] * 5])
    batch = batch.pad_to(12 + slack, 3 + slack, 0, 7)
    hidden = torch.randn(12 + slack, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(12 + slack, 6, dtype=torch.float64)
    loss = cosine_loss(hidden, teacher, batch)
    wanted = torch.nn.CosineEmbeddingLoss()(
        hidden[:12], teacher[:12], torch.ones(12, dtype=torch.float64)
    )
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (loss, wanted)))


def test_the_cosine_loss_refuses_other_widths():
    with pytest.raises(BertfastError, match="9 wide and the student's 6"):
        cosine_loss(torch.ones(2, 6), torch.ones(2, 9), PackedBatch.from_sequences([[1, 2]]))


def test_the_students_layers_are_spread_over_the_teachers():
    assert teacher_layers(6, 12) == [0, 2, 4, 7, 9, 11]
    assert teacher_layers(12, 12) == list(range(12))
    assert teacher_layers(1, 12) == [0]
    for teacher in range(2, 25):
        for student in range(2, teacher + 1):
            layers = teacher_layers(student, teacher)
            gaps = {b - a for a, b in itertools.pairwise(layers)}
            assert (layers[0], layers[-1], len(layers)) == (0, teacher - 1, student)
            assert min(gaps) >= 1
            assert max(gaps) - min(gaps) <= 1
    with pytest.raises(BertfastError, match="13 layers and the teacher 12"):
        teacher_layers(13, 12)
