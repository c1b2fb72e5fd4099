"""What `adamw` and `gradient_norm` promise on every backend."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast import kernels
from bertfast.kernels import dispatch
from support import BACKENDS, DEVICE, forced

module = importlib.import_module("bertfast.kernels.adamw")  # the package's name is the function
OPTIONS = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def tensors(sizes, dtype, copies, seed=0):
    """weights, gradients, means, squares and copies."""
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.randn(size, generator=generator).to(DEVICE) for size in sizes] for _ in range(4)]
    weights, gradients, means, squares = draw
    gradients = [g.to(dtype) for g in gradients]
    squares = [s.square() for s in squares]
    return [weights, gradients, means, squares, [w.bfloat16() for w in weights] if copies else []]


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 16, 3000, 20000]), min_size=1, max_size=3),
    dtype=st.sampled_from(dispatch.DTYPES),
    copies=st.booleans(),
    step=st.sampled_from([1, 2, 1000]),
    scale=st.sampled_from([1.0, 0.25]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_the_formula_in_float64(backend, sizes, dtype, copies, step, scale):
    lists = tensors(sizes, dtype, copies)
    w, g, m, v, _ = [[x.double() for x in part] for part in lists]
    with forced(backend, dtype):
        kernels.adamw(*lists, lr=1e-2, step=step, gradient_scale=scale, **OPTIONS)
    for i in range(len(sizes)):
        g[i] *= scale
        m[i] = 0.9 * m[i] + 0.1 * g[i]
        v[i] = 0.99 * v[i] + 0.01 * g[i] ** 2
        w[i] *= 1 - 1e-2 * 0.1
        w[i] -= 1e-2 * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.99**step)).sqrt() + 1e-6)
    for mine, wanted in zip((lists[0], lists[2], lists[3]), (w, m, v), strict=True):
        torch.testing.assert_close([x.double() for x in mine], wanted, rtol=3e-5, atol=1e-6)
    for copy, weight in zip(lists[4], lists[0], strict=False):
        # Rounded to nearest; Triton's interpreter cuts off.
        error = {"rtol": 2**-8 if backend != "triton" else 2**-7, "atol": 0.0}
        torch.testing.assert_close(copy.float(), weight, **error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_follow_torchs_own_adamw(backend):
    weight = torch.randn(50, 4, device=DEVICE)
    theirs = weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 21):
        gradient = torch.randn(50, 4, device=DEVICE)
        theirs.grad = gradient.clone()
        optimizer.step()
        with forced(backend):
            kernels.adamw([weight], [gradient], [mean], [square], lr=1e-2, step=step, **OPTIONS)
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rates_may_be_tensors(backend):
    one, other = tensors([40], torch.float32, False), tensors([40], torch.float32, False)
    with forced(backend):
        kernels.adamw(*one, lr=0.5, step=3, gradient_scale=0.5, **OPTIONS)
        lr, step, scale = (torch.tensor(x, device=DEVICE) for x in (0.5, 3, 0.5))
        kernels.adamw(*other, lr=lr, step=step, gradient_scale=scale, **OPTIONS)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_weight_may_have_its_own_decay(backend):
    decays = (0.1, 0.0, 0.1)
    one, other = (tensors([40, 7, 5000], torch.bfloat16, True) for _ in range(2))
    rest = {name: value for name, value in OPTIONS.items() if name != "weight_decay"}
    with forced(backend):
        kernels.adamw(*one, lr=0.5, step=3, weight_decay=decays, **rest)
        for number, decay in enumerate(decays):
            alone = [part[number : number + 1] for part in other]
            kernels.adamw(*alone, lr=0.5, step=3, weight_decay=decay, **rest)
    for mine, wanted in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, wanted, strict=True))


def test_any_number_of_tensors_is_one_launch_and_their_norm_two(monkeypatch):
    launched = []
    monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: launched.append(kernel))
    lists = tensors([5, 4096, 0, 4097] * 20, torch.bfloat16, True)
    with forced("triton"):
        kernels.gradient_norm(lists[1])
        kernels.adamw(*lists, lr=0.1, step=1, weight_decay=[0.1, 0.0] * 40)
    assert launched == [module._squares_kernel, module._norm_kernel, module._adamw_kernel]


def test_addresses_that_are_no_multiples_of_16_are_followed():
    whole = tensors([3001], torch.bfloat16, True)
    shifted = [[x[0][1:]] for x in whole]
    wanted = [[x[0][1:].clone()] for x in whole]
    with forced("triton"):
        for lists in (shifted, wanted):
            kernels.adamw(*lists, lr=0.1, step=1)
        torch.testing.assert_close(shifted, wanted, rtol=0, atol=0)
        assert torch.equal(*(kernels.gradient_norm(lists[1]) for lists in (shifted, wanted)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_is_the_joint_one(backend, dtype):
    gradients = [torch.randn(size, device=DEVICE).to(dtype) for size in (1, 0, 300, 70000)]
    with forced(backend, dtype):
        norm = kernels.gradient_norm(gradients)
    wanted = torch.cat([g.double() for g in gradients]).norm()
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_is_the_joint_one_of_any_mix_of_dtypes(backend):
    gradients = [
        torch.randn(n, device=DEVICE).to(d)
        for n, d in zip((5000, 3, 70), dispatch.DTYPES, strict=True)
    ]
    with forced(backend):
        norm = kernels.gradient_norm(gradients)
    wanted = torch.cat([g.double() for g in gradients]).norm()
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_norm_of_nothing_is_zero_and_nan_is_not_hidden():
    assert kernels.gradient_norm([]).item() == 0
    assert kernels.gradient_norm([torch.tensor([1.0, float("nan")])]).isnan()


def test_the_step_is_the_same_bits_on_any_number_of_threads():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lists = tensors([50000, 3], torch.bfloat16, True)
            with forced("cpp"):
                norm = kernels.gradient_norm(lists[1])
                kernels.adamw(*lists, lr=1e-3, step=1)
            results.append([norm, *lists[0], *lists[4]])
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True)
    )


def test_the_custom_op_passes_opcheck():
    lists = tensors([6, 3], torch.bfloat16, True)
    lists = [[x.cpu() for x in part] for part in lists]
    rates = torch.tensor([0.1, 0.1, 0.1, 1.0])
    with forced("cpp"):
        torch.library.opcheck(
            torch.ops.bertfast.adamw.default, (*lists, rates, 0.9, 0.999, 1e-6, [0.0, 0.1], "cpp")
        )
        torch.library.opcheck(torch.ops.bertfast.gradient_norm.default, (lists[1], "cpp"))


W = torch.ones(3)


@pytest.mark.parametrize(
    ("lists", "options", "error", "message"),
    [
        (([W], [], [W], [W]), {}, ValueError, "there are 0 gradients and 1 weights"),
        (
            ([W], [W[:2]], [W], [W]),
            {},
            ValueError,
            r"gradients\[0\] has shape \(2,\) and weights\[0\] \(3,\)",
        ),
        (
            ([W.double()], [W], [W], [W]),
            {},
            TypeError,
            r"weights\[0\] is torch.float64; it must be torch.float32",
        ),
        (
            ([W, W], [W, W.bfloat16()], [W, W], [W, W]),
            {},
            TypeError,
            r"gradients\[1\] is torch.bfloat16",
        ),
        (
            ([W], [W], [W], [W], [W]),
            {},
            TypeError,
            r"copies\[0\] is torch.float32; it must be torch.bfloat16",
        ),
        (
            ([torch.ones(4)[::2]], [W[:2]], [W[:2]], [W[:2]]),
            {},
            ValueError,
            r"weights\[0\] is not contiguous",
        ),
        (([W], [W.to("meta")], [W], [W]), {}, ValueError, r"gradients\[0\] is on meta"),
        (([W], [W], [W], [W]), {"step": 0}, ValueError, "step is 0; the first is 1"),
        (([W], [W], [W], [W]), {"betas": (0.9, 1.0)}, ValueError, "betas are"),
        (([W], [W], [W], [W]), {"eps": -1.0}, ValueError, "eps is -1.0"),
        (
            ([W], [W], [W], [W]),
            {"weight_decay": [0.1, 0.2]},
            ValueError,
            "weight_decay has 2 values and there are 1 weights",
        ),
    ],
)
def test_wrong_arguments_are_named(lists, options, error, message):
    with pytest.raises(error, match=message):
        kernels.adamw(*lists, **({"lr": 0.1, "step": 1} | options))


def test_the_private_op_follows_no_gradient_of_another_dtype():
    weights, gradients, means, squares, _ = tensors([5, 6], torch.float32, False)
    gradients[1] = gradients[1].bfloat16()
    rates = torch.tensor([0.1, 0.1, 0.1, 1.0], device=DEVICE)
    with forced("triton"), pytest.raises(TypeError, match="of one dtype"):
        module._adamw(
            weights, gradients, means, squares, [], rates, 0.9, 0.99, 1e-6, [0.0, 0.0], "triton"
        )
