"""What `linear_cross_entropy` promises on every backend."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bertfast import kernels
from bertfast.kernels import dispatch, products
from support import (
    BACKENDS,
    COMPILE_BACKEND,
    DEVICE,
    assert_close_to_float64,
    forced,
    missing_backend,
)

# The package's name is the function.
module = importlib.import_module("bertfast.kernels.linear_cross_entropy")
KERNELS = ("cpp", "triton")


def inputs(rows, vocab, hidden, dtype, ignored=0, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, hidden, generator=generator)
    w = torch.randn(vocab, hidden, generator=generator) / hidden**0.5
    b = torch.randn(vocab, generator=generator)
    labels = torch.randint(vocab, (rows,), generator=generator)
    labels[torch.randperm(rows, generator=generator)[:ignored]] = -100
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (h, w, b)[: 3 if bias else 2]]
    return leaves, labels.to(DEVICE)


def run(leaves, labels, dloss=None, **options):
    hidden, weight, *bias = leaves
    loss, correct = kernels.linear_cross_entropy(
        hidden, weight, bias[0] if bias else None, labels, **options
    )
    gradients = torch.autograd.grad(loss, leaves, dloss)
    return loss.detach(), correct, gradients


def float64_run(leaves, labels, dloss=None, **options):
    with kernels.use_backend("reference"):
        wide = [x.detach().double().requires_grad_() for x in leaves]
        return run(wide, labels, None if dloss is None else dloss.double(), **options)


def check(backend, rows, vocab, hidden, dtype, ignored=0, bias=True, dloss=None, **options):
    leaves, labels = inputs(rows, vocab, hidden, dtype, ignored, bias)
    with forced(backend, dtype):
        loss, correct, gradients = run(leaves, labels, dloss, **options)
    wanted_loss, wanted_correct, wanted_gradients = float64_run(leaves, labels, dloss, **options)
    assert loss.dtype == torch.float32
    # The loss itself is float32, but its logits carry the input dtype's rounding.
    assert_close_to_float64(loss.to(dtype), wanted_loss)
    for got, wanted in zip(gradients, wanted_gradients, strict=True):
        assert got.dtype == dtype
        assert_close_to_float64(got, wanted)
    if dtype == torch.float32:
        assert correct.item() == wanted_correct.item()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.slow_unless(lambda reduction: reduction == "mean")
def test_the_reference_passes_gradcheck(reduction, smoothing, z_loss):
    leaves, labels = inputs(5, 7, 4, torch.float64, ignored=2)
    options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
    assert torch.autograd.gradcheck(
        lambda h, w, b: kernels.linear_cross_entropy(h, w, b, labels, **options)[0], leaves
    )


def test_the_reference_equals_torch_cross_entropy():
    (h, w, b), labels = inputs(9, 31, 8, torch.float64, ignored=3)
    loss, correct = kernels.linear_cross_entropy(h, w, b, labels, label_smoothing=0.2)
    logits = h @ w.T + b
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    )
    assert correct == (logits.argmax(-1) == labels).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow_unless(lambda backend, reduction: backend == "cpp" or reduction == "mean")
def test_every_dtype_and_reduction_matches_float64(backend, reduction, dtype):
    dloss = torch.randn(13, device=DEVICE) if reduction == "none" else None
    check(backend, 13, 501, 24, dtype, ignored=4, dloss=dloss, reduction=reduction)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"label_smoothing": 1.0, "z_loss": 0.1}]
)
def test_label_smoothing_and_z_loss_match_float64(backend, options):
    check(backend, 11, 97, 16, torch.float32, ignored=2, **options)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 20),
    # A program of the Triton kernel takes 4,096 entries at a time.
    vocab=st.sampled_from([1, 2, 15, 16, 17, 100, 1023, 4096, 4100]),
    hidden=st.sampled_from([1, 8, 33]),
    bias=st.booleans(),
    dtype=st.sampled_from(dispatch.DTYPES),
    ignored=st.integers(0, 20),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_size_matches_float64(backend, rows, vocab, hidden, bias, dtype, ignored):
    check(backend, rows, vocab, hidden, dtype, ignored, bias)


@pytest.mark.parametrize("backend", KERNELS)
def test_many_blocks_of_logits_give_what_one_gives(backend, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 320 * 3)
    for dtype in (torch.float32, torch.bfloat16):
        check(backend, 14, 300, 16, dtype, ignored=3)
    check(backend, 14, 300, 16, torch.float32, reduction="none", dloss=torch.randn(14))


class VocabularyProducts(TorchDispatchMode):
    """Within it ``shapes`` collects the factors of each product that reads or gives something of
    ``vocab`` entries, inside our ops too.
    """

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.shapes = vocab, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bertfast":
            op = torch._library.custom_ops.OPDEFS[func.name().split(".")[0]]
            with self:
                return op._init_fn(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").partition(".")[0]
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        if name in ("mm", "addmm", "addmm_", "bmm", "matmul", "linear") and any(
            self.vocab in shape for shape in shapes
        ):
            self.shapes.append(shapes[-2:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("backend", KERNELS)
def test_a_step_makes_three_products_of_the_vocabularys_size(backend, blocks, monkeypatch):
    rows, vocab, hidden = 12, 320, 8
    monkeypatch.setattr(module, "BLOCK_BYTES", rows * vocab * 4 // blocks)
    leaves, labels = inputs(rows, vocab, hidden, torch.float32, ignored=1)
    height = rows // blocks
    forward = [(height, hidden), (hidden, vocab)]
    step = [forward, [(height, vocab), (vocab, hidden)], [(vocab, height), (height, hidden)]]
    with forced(backend), VocabularyProducts(vocab) as made:
        loss, _ = kernels.linear_cross_entropy(*leaves, labels)
        (loss / 2).backward()
        assert made.shapes == step * blocks
        made.shapes.clear()
        with torch.no_grad():
            kernels.linear_cross_entropy(*leaves, labels)
        kernels.linear_cross_entropy(*(x.detach() for x in leaves), labels)
        assert made.shapes == [forward] * 2 * blocks


def test_blocks_on_a_gpu_are_a_share_of_its_memory(monkeypatch):
    memory = SimpleNamespace(total_memory=module.GPU_SHARE * 1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    hidden = SimpleNamespace(shape=(9, 4), device=torch.device("cuda", 1))
    assert module.row_blocks(hidden, 50, 2) == [slice(0, 9)]
    assert module.row_blocks(hidden, 100, 2) == [slice(0, 5), slice(5, 9)]
    hidden.device = torch.device("cpu")
    assert module.row_blocks(hidden, 100, 2) == [slice(0, 9)]


def test_the_labels_of_a_gpu_are_never_followed_out_of_a_row():
    """Their values are not read by the host."""
    leaves, labels = inputs(4, 30, 8, torch.float32)
    labels[:3] = torch.tensor([30, -7, 2**40])
    with forced("triton"):
        arguments = (*leaves, labels, -100, 0.0, 0.0, "none")
        loss, correct, *_ = _unread(
            lambda: module._linear_cross_entropy(*arguments, False, "triton")
        )
    lse = (leaves[0] @ leaves[1].T + leaves[2]).logsumexp(1)
    torch.testing.assert_close(loss[:3], lse[:3])
    assert correct <= 1


def _unread(call):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        return call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_upstream_gradient_scales_every_gradient(backend):
    check(backend, 6, 50, 8, torch.float32, dloss=torch.tensor(0.25, device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_row_that_counts_gives_zero_loss_and_zero_gradients(backend):
    leaves, labels = inputs(3, 20, 8, torch.float32, ignored=3)
    with forced(backend):
        for reduction in ("mean", "sum"):
            loss, correct, gradients = run(leaves, labels, reduction=reduction)
            assert loss == 0
            assert correct == 0
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tie_goes_to_the_lowest_id(backend):
    hidden, weight = torch.ones(2, 4, device=DEVICE), torch.ones(9, 4, device=DEVICE)
    with forced(backend):
        _, correct = kernels.linear_cross_entropy(
            hidden, weight, None, torch.tensor([0, 1], device=DEVICE)
        )
    assert correct == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_loss(backend):
    (h, w, b), labels = inputs(4, 30, 8, torch.float32)
    with torch.no_grad():
        h[2, 1] = float("nan")
    with forced(backend):
        loss, _ = kernels.linear_cross_entropy(h, w, b, labels, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_do_not_overflow(backend):
    hidden = torch.full((1, 1), 1e4, device=DEVICE)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], device=DEVICE)
    with forced(backend):
        loss, _ = kernels.linear_cross_entropy(
            hidden, weight, None, torch.tensor([2], device=DEVICE)
        )
    assert loss.item() == pytest.approx(5e3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_retained_graph_can_be_gone_back_through_again(backend):
    leaves, labels = inputs(6, 40, 8, torch.float32)
    with forced(backend):
        once = run(leaves, labels)[2]
        loss, _ = kernels.linear_cross_entropy(*leaves, labels)
        for _ in range(3):
            loss.backward(retain_graph=True)
    for leaf, gradient in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input_gives_what_contiguous_input_gives(backend):
    (h, w, b), labels = inputs(6, 40, 8, torch.float32)
    strided = [
        torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_() for x in (h, w, b)
    ]
    with forced(backend):
        loss, _, gradients = run([h, w, b], labels)
        other_loss, _, other_gradients = run(strided, torch.stack([labels, labels], -1)[:, 0])
    torch.testing.assert_close([loss, *gradients], [other_loss, *other_gradients])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_custom_op_passes_opcheck(reduction):
    (h, w, b), labels = inputs(5, 30, 8, torch.float32, ignored=1)
    now = reduction == "mean"
    with forced("cpp"):
        for bias in (b, None):
            arguments = (h, w, bias, labels, -100, 0.1, 0.0, reduction, now, "cpp")
            torch.library.opcheck(torch.ops.bertfast.linear_cross_entropy.default, arguments)
        loss, *_ = torch.ops.bertfast.linear_cross_entropy(*arguments)
        detached = [x.detach() for x in (torch.ones_like(loss), h, w, b)]
        backward = (*detached, labels, -100, 0.1, 0.0, reduction, "cpp")
        torch.library.opcheck(torch.ops.bertfast.linear_cross_entropy_backward.default, backward)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_torch_compile_takes_it_without_a_graph_break(backend):
    leaves, labels = inputs(6, 40, 8, torch.float32)

    def loss(*leaves):
        return kernels.linear_cross_entropy(*leaves, labels, label_smoothing=0.1)[0]

    with forced(backend):
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend=COMPILE_BACKEND)(*leaves), leaves
        )
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_loss_without_gradients_equals_the_loss_with_them(backend):
    leaves, labels = inputs(6, 40, 8, torch.float32)
    with forced(backend):
        loss = run(leaves, labels)[0]
        with torch.no_grad():
            assert torch.equal(kernels.linear_cross_entropy(*leaves, labels)[0], loss)


def bad_calls():
    h, w, b, y = torch.randn(3, 4), torch.randn(9, 4), torch.randn(9), torch.tensor([0, 8, -100])
    yield "hidden is torch.int64", TypeError, (h.long(), w, b, y), {}
    yield "hidden has shape (3, 4, 1)", ValueError, (h[..., None], w, b, y), {}
    yield "weight is torch.float16 and hidden torch.float32", TypeError, (h, w.half(), b, y), {}
    yield "weight has 3 columns and hidden 4", ValueError, (h, w[:, :3], b, y), {}
    yield "weight has no rows", ValueError, (h, w[:0], None, y), {}
    yield "bias has 8 entries and weight 9 rows", ValueError, (h, w, b[:8], y), {}
    yield "labels is torch.int32", TypeError, (h, w, b, y.int()), {}
    yield "there are 2 labels and 3 rows", ValueError, (h, w, b, y[:2]), {}
    yield "labels is on meta", ValueError, (h, w, b, y.to("meta")), {}
    yield (
        "labels[1] is 9; it must be from 0 to 8",
        ValueError,
        (h, w, b, torch.tensor([0, 9, 1])),
        {},
    )
    yield "labels[2] is -100", ValueError, (h, w, b, y), {"ignore_index": -1}
    yield "reduction is 'max'", ValueError, (h, w, b, y), {"reduction": "max"}
    yield "label_smoothing is 1.5", ValueError, (h, w, b, y), {"label_smoothing": 1.5}
    yield "z_loss is -1", ValueError, (h, w, b, y), {"z_loss": -1}


@pytest.mark.parametrize(
    ("message", "error", "arguments", "options"),
    list(bad_calls()),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_arguments_are_named(message, error, arguments, options):
    with pytest.raises(error) as caught:
        kernels.linear_cross_entropy(*arguments, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_autocast_around_the_call_changes_nothing(backend):
    hidden, weight = torch.randn(40, 16), torch.randn(70, 16)
    labels = torch.randint(70, (40,))

    def loss_and_gradients():
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, _ = kernels.linear_cross_entropy(*inputs, None, labels)
        return loss, torch.autograd.grad(loss, inputs)

    with forced(backend):
        plain = loss_and_gradients()
        with torch.autocast("cpu", torch.bfloat16):
            surrounded = loss_and_gradients()
    torch.testing.assert_close(surrounded[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(surrounded[1], plain[1], rtol=0.05, atol=0.01)


MEMORY = """
import resource, sys, torch
from bertfast import kernels
rows, vocab, width, dtype = int(sys.argv[1]), 30522, 32, getattr(torch, sys.argv[2])
hidden, weight = (torch.randn(n, width).to(dtype).requires_grad_() for n in (rows, vocab))
def run(count):
    loss, _ = kernels.linear_cross_entropy(hidden[:count], weight, None, torch.arange(count))
    return torch.autograd.grad(loss, (hidden, weight))
run(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gradients = run(rows)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(peak / 1024 - sum(g.numel() * g.element_size() for g in gradients) / 2**20)
"""


@pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_the_memory_beside_the_gradients_is_bounded_whatever_the_number_of_rows(dtype):
    """4,000 rows of logits would be 466 MiB in float32."""
    command = [sys.executable, "-c", MEMORY, "4000", dtype]
    mebibytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert mebibytes < 64


@pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))
@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)
@pytest.mark.parametrize("blocks", [1, 3])
def test_its_products_are_onednns_where_mkl_is_half_as_wide(blocks, monkeypatch):
    calls, product = [], products._onednn
    monkeypatch.setattr(products, "_mkl_is_half_as_wide", lambda: True)
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "PANEL", 700)
    monkeypatch.setattr(
        products, "_onednn", lambda *args: (calls.append(args[-1]), product(*args))[1]
    )
    rows, hidden, vocab = 30, 24, 90
    monkeypatch.setattr(module, "BLOCK_BYTES", rows * vocab * 4 // blocks)
    leaves = [torch.randn(s, requires_grad=True) for s in ((rows, hidden), (vocab, hidden))]
    labels = torch.randint(vocab, (rows,))
    loss, _ = kernels.linear_cross_entropy(*leaves, None, labels)
    gradients = torch.autograd.grad(loss, leaves)
    # Logits and the gradient of hidden, a block each; that of the weight is added up over blocks.
    assert calls.count(True) == (blocks if blocks > 1 else 0)
    assert calls.count(False) >= 3 * blocks
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = F.cross_entropy(wide[0] @ wide[1].t(), labels)
    assert_close_to_float64(loss, exact)
    for mine, other in zip(gradients, torch.autograd.grad(exact, wide), strict=True):
        assert_close_to_float64(mine, other)
