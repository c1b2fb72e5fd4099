"""Products on a CPU: what it multiplies itself, and what is widened, multiplied in float32 and
rounded once.
"""

import importlib
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertfast import kernels
from bertfast.kernels import dispatch, products
from bertfast.kernels.linear import widened_products
from support import COMPILE_BACKEND, HalfProducts, assert_close_to_float64, missing_backend

HALVES = [torch.bfloat16, torch.float16]
needs_cpp = pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))
loss_module = importlib.import_module("bertfast.kernels.linear_cross_entropy")


@pytest.fixture
def widened(monkeypatch):
    """As on a CPU that multiplies neither half; the shapes of the products that were widened."""
    shapes, product = [], products._widened
    for dtype in HALVES:
        monkeypatch.setitem(products.NATIVE, dtype, False)
    monkeypatch.setattr(
        products,
        "_widened",
        lambda a, b, *rest: (shapes.append((*a.shape, b.shape[1])), product(a, b, *rest))[1],
    )
    return shapes


@pytest.fixture(params=["C++", "panels"])
def way(request, monkeypatch):
    """Each of the two ways a product is widened."""
    if request.param == "C++" and missing_backend("cpp"):
        pytest.skip(missing_backend("cpp"))
    monkeypatch.setattr(products, "_has_cpp", lambda: request.param == "C++")
    monkeypatch.setattr(products, "PANEL", 700)
    return request.param


def matrix(rows, columns, dtype, form):
    if form == "turned":
        return torch.randn(columns, rows).to(dtype).t()
    if form == "spread":  # neither its rows nor its columns are contiguous
        return torch.randn(rows, 2 * columns).to(dtype)[:, ::2]
    return torch.randn(rows, columns).to(dtype)


def bound(wanted, inner, dtype):
    """One rounding to the dtype, and those of a sum in float32."""
    return wanted.abs() * torch.finfo(dtype).eps * 0.51 + 1e-5 * max(inner, 1) ** 0.5


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1), (3, 5, 7), (70, 300, 33), (9, 513, 290), (5, 0, 4), (65, 64, 1), (0, 3, 2),
        (16, 70, 66), (17, 17, 17), (40, 11, 130), (70, 16, 35), (40, 0, 20), (300, 33, 2),
    ],
)  # fmt: skip
def test_a_product_is_rounded_once_from_float32_sums(shape, dtype, widened, way):
    rows, inner, columns = shape
    forms = itertools.product(["rows", "turned", "spread"], repeat=2)
    mixes = [(dtype,) * 3, (dtype, dtype, torch.float32), (torch.float32, dtype, dtype)]
    for number, ((form, other), mix) in enumerate(itertools.product(forms, mixes)):
        a, b = matrix(rows, inner, mix[0], form), matrix(inner, columns, mix[1], other)
        out = matrix(rows, columns, mix[2], ["rows", "turned", "spread"][number % 3])
        bias = torch.randn(columns).to(dtype) if number % 2 else None
        accumulate = bias is None and number % 4 == 0
        wanted = a.double() @ b.double()
        for more in (bias, out if accumulate else None):
            wanted = wanted if more is None else wanted + more.double()
        got = products.mm(a, b, bias, out=out, accumulate=accumulate)
        assert got is out
        assert ((out.double() - wanted).abs() <= bound(wanted, inner, mix[2])).all(), (form, other)
    assert len(widened) == number + 1


@needs_cpp
@pytest.mark.parametrize(
    "shape",
    [
        (2060, 300, 20),
        (40, 20, 1100),
        (700, 260, 700),
        (7, 2000, 65),
        (9, 65, 2000),
        (900, 12, 300),
    ],
)
def test_every_instruction_set_and_any_number_of_threads_agree(shape, widened):
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16().t()
    wanted, selected = a.double() @ b.double(), dispatch._C.capabilities()["selected"]
    threads = torch.get_num_threads()
    try:
        for isa in dispatch._C.capabilities()["runnable"]:
            dispatch._C.set_isa(isa)
            results = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(products.mm(a, b))
            assert all(torch.equal(result, results[0]) for result in results[1:])
            error = (results[0].double() - wanted).abs()
            assert (error <= bound(wanted, inner, torch.bfloat16)).all()
    finally:
        torch.set_num_threads(threads)
        dispatch._C.set_isa(selected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_layer_and_its_gradients_equal_float64(dims, dtype, widened):
    shape = {1: (40,), 2: (30, 40), 3: (3, 10, 40)}[dims]
    x, weight, bias = (torch.randn(s).to(dtype).requires_grad_() for s in (shape, (50, 40), (50,)))
    got = kernels.linear(x, weight, bias)
    dout = torch.randn(got.shape).to(dtype)
    gradients = torch.autograd.grad(got, (x, weight, bias), dout)
    assert len(widened) == 3
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.linear(*wide)
    pairs = zip(gradients, torch.autograd.grad(wanted, wide, dout.double()), strict=True)
    for mine, other in [(got, wanted), *pairs]:
        assert mine.dtype == dtype
        assert_close_to_float64(mine, other)


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 33])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_layer_of_a_short_text_and_its_gradients_equal_float64(dtype, rows, widened, way):
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((rows, 200), (90, 200), (90,)))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    got = kernels.linear(*leaves)
    dout = torch.randn(90, rows).to(dtype).t()  # neither contiguous nor its layout the output's
    gradients = torch.autograd.grad(got, leaves, dout)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wanted = F.linear(*wide)
    pairs = zip(gradients, torch.autograd.grad(wanted, wide, dout.double()), strict=True)
    for mine, other in [(got, wanted), *pairs]:
        assert_close_to_float64(mine, other)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_bias_of_either_dtype_is_added_in_float32(dtype):
    a, b = torch.randn(5, 40).half(), torch.randn(40, 33).half()
    bias = torch.randn(33).to(dtype)
    call = {"a": a, "b": b, "bias": bias, "out": torch.empty(5, 33), "accumulate": False}
    if dtype == torch.bfloat16:
        with pytest.raises(TypeError, match="bias is bfloat16; it must be float16"):
            dispatch._C.widened_product(**call, threads=1)
        return
    dispatch._C.widened_product(**call, threads=1)
    wanted = a.double() @ b.double() + bias.double()
    torch.testing.assert_close(call["out"].double(), wanted, rtol=1e-5, atol=1e-5)


PLAIN = {  # PyTorch's own products of two matrices
    "F.linear": lambda x, y: F.linear(x, y.t()),
    "@": lambda x, y: x @ y,
    "matmul": torch.matmul,
    "mm": lambda x, y: x.mm(y),
    "bmm": lambda x, y: x[None].bmm(y[None])[0],
    "addmm": lambda x, y: torch.addmm(torch.zeros((), dtype=x.dtype), x, y),
    "einsum": lambda x, y: torch.einsum("ij,jk->ik", x, y),
    "conv1d": lambda x, y: F.conv1d(x[:, :, None], y.t()[:, :, None])[:, :, 0],
    "nn.Linear": lambda x, y: torch.func.functional_call(
        nn.Linear(*y.shape, bias=False), {"weight": y.t()}, (x,)
    ),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_pytorchs_products_are_widened_where_asked(name, dtype, widened):
    x, y = (torch.randn(s).to(dtype).requires_grad_() for s in ((6, 20), (20, 9)))
    with HalfProducts() as seen, widened_products(x), widened_products(x):
        got = PLAIN[name](x, y)
    with seen:
        gradients = torch.autograd.grad(got.float().square().sum(), (x, y))
    assert seen.names == []
    assert got.dtype == dtype
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    wanted = wide[0] @ wide[1]
    assert_close_to_float64(got, wanted)
    for mine, other in zip(
        gradients, torch.autograd.grad(wanted, wide, 2 * got.double()), strict=True
    ):
        assert mine.dtype == dtype
        assert_close_to_float64(mine, other)


@pytest.mark.parametrize("name", ["native", "meta", "nothing"])
def test_pytorchs_products_are_left_alone_elsewhere(name, monkeypatch):
    monkeypatch.setitem(products.NATIVE, torch.bfloat16, name == "native")
    x = torch.randn(3, 4).bfloat16()
    like = {"native": x, "meta": x.to("meta"), "nothing": None}[name]
    with HalfProducts() as seen, widened_products(like):
        F.linear(x, x)
    assert seen.names == ["mm"]


def test_a_layer_is_differentiable_twice(widened):
    x, weight = (torch.randn(4, 4).bfloat16().requires_grad_() for _ in range(2))
    (dx,) = torch.autograd.grad(kernels.linear(x, weight).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x)
    wide = weight.detach().double()
    assert_close_to_float64(second, torch.full((4, 4), 2.0).double() @ wide.t() @ wide)


@pytest.mark.parametrize("lower", HALVES, ids=str)
def test_autocast_gives_its_dtype_and_float32_gradients(lower, widened):
    x, weight = torch.randn(8, 16, requires_grad=True), nn.Parameter(torch.randn(4, 16))
    with torch.autocast("cpu", lower):
        got = kernels.linear(x, weight)
    got.float().sum().backward()
    assert got.dtype == lower
    assert len(widened) == 3
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    assert_close_to_float64(got, x.to(lower).double() @ weight.to(lower).double().t())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.slow
def test_a_compiled_layer_is_one_graph_that_multiplies_in_float32(dtype, widened):
    torch._dynamo.reset()
    x, weight, bias = (torch.randn(s).to(dtype).requires_grad_() for s in ((9, 16), (4, 16), (4,)))
    call = torch.compile(kernels.linear, fullgraph=True, backend=COMPILE_BACKEND)
    got = call(x, weight, bias)
    assert got.dtype == dtype
    assert_close_to_float64(got, F.linear(x.double(), weight.double(), bias.double()))
    gradients = torch.autograd.grad(got, (x, weight), torch.ones_like(got))
    assert [gradient.dtype for gradient in gradients] == [dtype] * 2


def test_a_layer_goes_through_function_transforms(widened):
    x, weight = torch.randn(3, 2, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    each = torch.func.vmap(lambda x: kernels.linear(x, weight))(x)
    assert_close_to_float64(each, x.double() @ weight.double().t())
    gradient = torch.func.grad(lambda w: kernels.linear(x, w).float().sum())(weight)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_loss_is_no_further_from_float64_than_rounded_logits_are(
    blocks, dtype, widened, monkeypatch
):
    if missing_backend("cpp", dtype):
        pytest.skip(missing_backend("cpp", dtype))
    rows, hidden, vocab = 30, 24, 90
    monkeypatch.setattr(loss_module, "BLOCK_BYTES", rows * vocab * 2 // blocks)
    leaves = [torch.randn(s).to(dtype).requires_grad_() for s in ((rows, hidden), (vocab, hidden))]
    labels = torch.randint(vocab, (rows,))
    loss, _ = kernels.linear_cross_entropy(*leaves, None, labels)
    gradients = torch.autograd.grad(loss, leaves)
    assert len(widened) == 3 * blocks
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = F.cross_entropy(wide[0] @ wide[1].t(), labels)
    rounded = F.cross_entropy((wide[0] @ wide[1].t()).to(dtype).double(), labels)
    assert abs(loss.item() - exact.item()) <= max(abs(rounded - exact).item(), 1e-6)
    for mine, other in zip(gradients, torch.autograd.grad(exact, wide), strict=True):
        assert mine.dtype == dtype
        assert_close_to_float64(mine, other)


PROGRAM = """
import json, torch
from torch.profiler import ProfilerActivity, profile
from bertfast import BertForMaskedLM, BertModel, DebertaV2Model
from bertfast.config import BertConfig, DebertaV2Config
from bertfast.bench.lengths import Lengths
from bertfast.bench.steps import make_batch
from bertfast.kernels import dispatch, products
from bertfast.kernels.products import describe
calls, product = [], products._widened
products._widened = lambda a, b, *rest: (calls.append(a.dtype), product(a, b, *rest))[1]
found = {"native": {str(d): n for d, n in products.NATIVE.items()}, "describe": describe()}
config = BertConfig.preset("bert-tiny", vocab_size=300)
batch = make_batch(Lengths("mixed", (9, 5, 3)), 300, "cpu").packed
deberta = DebertaV2Config(vocab_size=300, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=48, relative_attention=True,
    pos_att_type=["p2c", "c2p"], position_buckets=4, conv_kernel_size=3, conv_act="gelu")
for name in ("bfloat16", "float16"):
    dtype = getattr(torch, name)
    model = BertForMaskedLM(config).to(dtype).train()
    other = DebertaV2Model(deberta).to(dtype).train()
    calls.clear()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(batch, seed=1).loss.backward()
        other(batch, seed=1).last_hidden_state.float().sum().backward()
    profiler.export_chrome_trace("trace.json")
    with open("trace.json") as file:
        events = json.load(file)["traceEvents"]
    half = {"c10::BFloat16", "c10::Half"}
    slow = [
        event["name"] for event in events
        if event.get("name", "").removeprefix("aten::") in
            ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mkldnn_convolution",
             "_slow_conv2d_forward", "convolution_backward", "addmv", "dot", "mv")
        and half & set(event.get("args", {}).get("Input type", []))
    ]
    states = model.bert(batch).last_hidden_state
    grads = {p.grad.dtype for p in [*model.parameters()] if p.grad is not None}
    found[name] = {"widened": len(calls), "slow": slow, "states": str(states.dtype),
        "gradients": sorted(map(str, grads))}
print(json.dumps(found))
"""


def emulated(tmp_path, isa):
    """What a process finds on a CPU that has no more than this, as oneDNN names it."""
    limits = {"ONEDNN_MAX_CPU_ISA": isa}
    if isa == "AVX2":
        limits |= {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "BERTFAST_CPU_ISA": "avx2",
        }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | limits,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_cpp
@pytest.mark.skipif(
    "avx2" not in dispatch._C.capabilities()["runnable"] if dispatch._C else True,
    reason="this CPU is none to emulate AVX2 on",
)
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
@pytest.mark.slow_unless(lambda isa: isa == "AVX2")
def test_without_native_products_a_training_step_makes_none_in_half_precision(isa, tmp_path):
    found = emulated(tmp_path, isa)
    assert found["native"] == {
        "torch.float32": True,
        "torch.bfloat16": False,
        "torch.float16": False,
    }
    for name in ("bfloat16", "float16"):
        assert "widened" in found["describe"][name]
        assert found[name]["slow"] == []
        assert found[name]["states"] == f"torch.{name}"
        assert found[name]["gradients"] == [f"torch.{name}"]
        # Of two layers of BERT six products each, forward and twice backward, at the least.
        assert found[name]["widened"] >= 2 * 6 * 3


@pytest.mark.skipif(
    not products.NATIVE[torch.bfloat16], reason="this CPU does not multiply bfloat16"
)
def test_where_the_cpu_multiplies_it_nothing_is_widened():
    x = torch.randn(4, 8).bfloat16()
    assert not products.widens(x)
    assert "native" in products.describe()["bfloat16"]
    assert torch.equal(kernels.linear(x, x), F.linear(x, x))
