"""The options that kernels are launched with: what is shipped, what a user's measurements change,
and that damage to them changes nothing.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bertfast import kernels
from bertfast.kernels import tuning
from support import DEVICE, REPOSITORY, assert_close_to_float64, missing_backend

CUDA = torch.device("cuda", 0)
HALF = torch.bfloat16
KERNEL = "attention.forward"
FASTER = {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3}


def forget():
    tuning._chosen.cache_clear()
    tuning.read_cache.cache_clear()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that is not there: its capability and name, which tests may set, and the path of a
    cache that is not there yet.
    """
    made = SimpleNamespace(
        capability=(9, 0), name="Some GPU", cache=tmp_path / "cache" / "tuning.json"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: made.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: made.name)
    monkeypatch.setenv("BERTFAST_CACHE", str(made.cache))
    forget()
    yield made
    forget()


def usual(kernel=KERNEL, dtype=HALF, size=64):
    return tuning.default(kernel, dtype, CUDA, size)[1]


def test_every_generation_has_the_same_kernels_precisions_and_options():
    files = [tuning.shipped(capability) for capability in tuning.GENERATIONS.values()]
    names = [
        {(k, key): tuple(found) for k, table in file.items() for key, found in table.items()}
        for file in files
    ]
    assert names[0] == names[1] == names[2]
    for file in files:
        for kernel, table in file.items():
            assert {key.split()[0] for key in table} == {"half", "float"}, kernel
            assert len({tuple(found) for found in table.values()}) == 1, kernel
            for found in table.values():
                counts = ("num_stages", "PROGRAMS")  # programs follow the multiprocessors
                sizes = [value for name, value in found.items() if name not in counts]
                assert all(value > 0 and value & (value - 1) == 0 for value in sizes), kernel


def test_every_head_size_has_options_of_its_own():
    for head_dim in kernels.dispatch.HEAD_DIMS:
        size = 1 << (head_dim - 1).bit_length()
        for kernel in ("forward", "query_gradient", "key_gradient", "forward_positions"):
            assert tuning.default(f"attention.{kernel}", HALF, DEVICE, size)[0] == f"half {size}"


@pytest.mark.parametrize(
    ("capability", "file"),
    [((8, 0), 80), ((8, 6), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((10, 3), 100),
     ((12, 0), 80), ((7, 5), 80)],
)  # fmt: skip
def test_a_gpu_takes_the_options_of_its_generation_or_the_least_demanding(
    gpu, capability, file, monkeypatch
):
    monkeypatch.setattr(
        tuning, "shipped", lambda capability: {KERNEL: {"half 64": {"BLOCK_M": capability}}}
    )
    gpu.capability = capability
    assert tuning.options(KERNEL, HALF, CUDA, 64) == {"BLOCK_M": file}


@pytest.mark.parametrize(
    ("size", "taken"), [(16, 128), (128, 128), (1024, 1024), (2048, 2048), (65536, 8192)]
)
def test_a_size_that_is_not_listed_takes_the_next_larger_ones_options(size, taken):
    key, found = tuning.default("add_layer_norm.forward", torch.float16, DEVICE, size)
    assert key == f"half {taken}"
    assert found == tuning.shipped(80)["add_layer_norm.forward"][key]


def test_precisions_have_their_own_options():
    half, single = (
        tuning.options(KERNEL, dtype, DEVICE, 64) for dtype in (torch.float16, torch.float32)
    )
    assert half == tuning.options(KERNEL, HALF, DEVICE, 64) != single


def test_measurements_come_before_what_is_shipped_and_for_their_size_alone(gpu):
    assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()
    tuning.save(KERNEL, "half 64", FASTER, 0)
    assert (
        tuning.options(KERNEL, HALF, CUDA, 64)
        == tuning.options(KERNEL, torch.float16, CUDA, 64)
        == FASTER
    )
    assert tuning.options(KERNEL, HALF, CUDA, 128) == usual(size=128)
    assert tuning.options(KERNEL, torch.float32, CUDA, 64) == usual(dtype=torch.float32)
    assert tuning.options(KERNEL, HALF, torch.device("cpu"), 64) != FASTER, (
        "the interpreter's results do not depend on a cache"
    )


def test_measurements_of_another_gpu_triton_or_source_do_not_count(gpu, monkeypatch):
    tuning.save(KERNEL, "half 64", FASTER, 0)
    for change in (
        lambda patch: setattr(gpu, "name", "Another GPU"),
        lambda patch: patch.setattr(tuning, "triton", SimpleNamespace(__version__="0.0")),
        lambda patch: patch.setattr(tuning, "source", lambda kernel: "edited"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            tuning._chosen.cache_clear()
            assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()
        gpu.name = "Some GPU"
    tuning._chosen.cache_clear()
    assert tuning.options(KERNEL, HALF, CUDA, 64) == FASTER


def test_measurements_are_added_to_those_that_are_there(gpu):
    tuning.save(KERNEL, "half 64", FASTER, 0)
    tuning.save(KERNEL, "half 32", FASTER, 0)
    tuning.save("adamw.update", "half", {"BLOCK": 512, "num_warps": 2}, 0)
    gpu.name = "Another GPU"
    tuning.save(KERNEL, "half 64", dict(usual()), 0)
    gpu.name = "Some GPU"
    forget()
    assert tuning.options(KERNEL, HALF, CUDA, 32) == FASTER
    assert tuning.options("adamw.update", HALF, CUDA) == {"BLOCK": 512, "num_warps": 2}
    assert len(json.loads(gpu.cache.read_text())) == 2


def test_a_changed_source_leaves_none_of_the_old_measurements(gpu, monkeypatch):
    tuning.save(KERNEL, "half 64", FASTER, 0)
    monkeypatch.setattr(tuning, "source", lambda kernel: "edited")
    tuning.save(KERNEL, "half 32", FASTER, 0)
    assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()
    assert tuning.options(KERNEL, HALF, CUDA, 32) == FASTER


ENTRY = {"Some GPU": {KERNEL: {"source": "x", "options": {"half 64": {"BLOCK_M": 64}}}}}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "\x00\x01", "null", '{"a": 1}', '{"a": {"b": []}}',
        json.dumps(ENTRY).replace('"x"', "7"),
        json.dumps(ENTRY).replace("64}", "0}"), json.dumps(ENTRY).replace("64}", '"64"}'),
        json.dumps(ENTRY).replace("64}", "true}"), json.dumps(ENTRY)[:-5],
    ],
)  # fmt: skip
def test_a_damaged_cache_is_ignored_with_one_line(gpu, text, capfd):
    gpu.cache.parent.mkdir()
    gpu.cache.write_text(text)
    assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()
    assert tuning.options(KERNEL, torch.float32, CUDA, 64) == usual(dtype=torch.float32)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(gpu.cache) in lines[0]
    assert "ignored" in lines[0]
    tuning.save(KERNEL, "half 64", FASTER, 0)
    assert tuning.options(KERNEL, HALF, CUDA, 64) == FASTER


def test_a_folder_in_the_caches_place_is_ignored_with_one_line(gpu, capfd):
    gpu.cache.mkdir(parents=True)
    assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_options_of_other_names_are_not_used(gpu):
    tuning.save(KERNEL, "half 64", {"BLOCK_M": 64}, 0)
    assert tuning.options(KERNEL, HALF, CUDA, 64) == usual()


def test_a_save_that_fails_leaves_the_file_as_it_was(gpu, monkeypatch):
    tuning.save(KERNEL, "half 64", FASTER, 0)
    before = gpu.cache.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tuning.save(KERNEL, "half 64", dict(usual()), 0)
    assert gpu.cache.read_bytes() == before
    assert list(gpu.cache.parent.iterdir()) == [gpu.cache]


def test_without_the_variable_the_cache_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BERTFAST_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_file() == tmp_path / ".cache" / "bertfast" / "tuning.json"


@pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton"))
@pytest.mark.parametrize(
    "candidate", [{"BLOCK_M": 16, "BLOCK_N": 32}, {"BLOCK_M": 32, "BLOCK_N": 16}]
)
def test_other_options_give_the_same_result(candidate):
    candidate = {**candidate, "num_warps": 4, "num_stages": 1}
    q, k, v = (torch.randn(40, 2, 16, device=DEVICE) for _ in range(3))
    bounds = torch.tensor([0, 33, 40], dtype=torch.int32, device=DEVICE)
    with kernels.use_backend("reference"):
        wanted = kernels.attention(*(x.double() for x in (q, k, v)), bounds, 33)
    with kernels.use_backend("triton"), tuning.trying(KERNEL, candidate):
        assert_close_to_float64(kernels.attention(q, k, v, bounds, 33), wanted)
    assert tuning.options(KERNEL, torch.float32, DEVICE, 16) != candidate


def test_the_shipped_files_are_built_into_the_package(tmp_path):
    """What a wheel takes, without its compiled part."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    built = tmp_path / "bertfast" / "kernels" / "configs"
    assert {path.name for path in built.iterdir()} == {"sm_80.json", "sm_90.json", "sm_100.json"}
