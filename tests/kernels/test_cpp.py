"""What the C++ extension promises beyond the ops: its instruction sets agree. What it refuses is in
`test_boundary.py`.
"""

import subprocess
import sys

import pytest
import torch
from boundary import call_op, op_call, ops_of

from bertfast import kernels
from bertfast.kernels import dispatch, products, threads
from support import boundaries, missing_backend, random_positions, tolerance

pytestmark = pytest.mark.skipif(bool(missing_backend("cpp")), reason=missing_backend("cpp"))


@pytest.fixture
def isas():
    """The instruction sets that run here; the one in use is put back."""
    facts = dispatch._C.capabilities()
    yield facts["runnable"]
    dispatch._C.set_isa(facts["selected"])


def outputs(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(70, 2, 48, generator=generator).to(dtype) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    cu_seqlens = boundaries([33, 0, 37])
    out = kernels.attention(*leaves, cu_seqlens, 37, dropout_p=0.2, seed=3)
    positions = random_positions("bqk", 70, 2, 37, dtype)
    placed = kernels.attention(*leaves, cu_seqlens, 37, window=20, positions=positions)
    placed_gradients = torch.autograd.grad(placed, [*leaves, *positions.tables], dout)
    h, w, b = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((9, 16), (101, 16), (101,))
    )
    loss, _ = kernels.linear_cross_entropy(h, w, b, torch.arange(9), label_smoothing=0.1)
    dropped = kernels.dropout(q, 0.3, seed=1)
    ids = torch.arange(70)
    rotated = kernels.rotary(q, k, ids, *kernels.rotary_tables(70, 48, 100.0))
    masked = kernels.mask_tokens(
        ids, ids < 3, mask_id=1, vocab_size=101, rate=0.5, word_ids=ids // 3, seed=1
    )
    gradients = [
        *torch.autograd.grad(out, leaves, dout),
        *torch.autograd.grad(loss, (h, w, b)),
        *placed_gradients,
    ]
    return [out, loss, placed, dropped, *rotated, *gradients, *masked]


@pytest.mark.parametrize("dtype", dispatch.DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_results(isas, dtype):
    results = []
    with kernels.use_backend("cpp"):
        for isa in isas:
            dispatch._C.set_isa(isa)
            results.append(outputs(dtype))
    for result in results[1:]:
        # Products of bfloat16 itself round the probabilities once more than widened ones do.
        torch.testing.assert_close(result, results[0], **tolerance(dtype))


def test_an_instruction_set_that_is_not_there_is_named(isas):
    with pytest.raises(
        ValueError, match="instruction set 'avx9000' is not to be had here; there are .*baseline"
    ):
        dispatch._C.set_isa("avx9000")


@pytest.mark.slow
def test_one_openmp_runtime_serves_torch_and_the_extension():
    # In a process of its own: other libraries of the tests (scikit-learn) bring a runtime along.
    program = """
import torch
from bertfast import kernels
kernels.dropout(torch.ones(4096), 0.5)
torch.ones(4096, 64).sum()
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1


class Recorder:
    """The extension, which notes the threads of each call."""

    def __init__(self, extension):
        self.extension, self.threads = extension, {}

    def __getattr__(self, name):
        function = getattr(self.extension, name)

        def call(**arguments):
            if "threads" in arguments:
                self.threads[name] = arguments["threads"]
            return function(**arguments)

        return call


def test_every_op_takes_one_thread_where_its_caller_works_beside_another(monkeypatch):
    recorder = Recorder(dispatch._C)
    monkeypatch.setattr(dispatch, "_C", recorder)
    monkeypatch.setattr(products, "_has_cpp", lambda: True)
    monkeypatch.setattr(products, "NATIVE", {torch.bfloat16: False})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    factors = torch.ones(4, 4, dtype=torch.bfloat16), torch.ones(4, 4, dtype=torch.bfloat16)
    with kernels.use_backend("cpp"):
        for alone, wanted in ((False, {2}), (True, {1})):
            monkeypatch.setattr(threads._own, "alone", alone, raising=False)
            recorder.threads.clear()
            for name in ops_of("cpp"):
                call_op(name, op_call(name, torch.float32, "cpp"))
            products.mm(*factors)
            assert len(recorder.threads) > 15
            assert set(recorder.threads.values()) == wanted
