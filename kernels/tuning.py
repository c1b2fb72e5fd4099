"""Tile sizes, warps and stages of the Triton kernels: shipped for each generation of GPUs, and what
`bertfast tune` measured on this one.

A kernel is launched with the options that the user's cache file has for this GPU, this Triton and
this source of the kernel. Where it has none, the kernel takes those shipped for the GPU's
generation (``configs/sm_*.json``). Nothing is searched for when an op is called. The shipped ones
are of a model, of bytes in flight and of the compiler's registers: no GPU has measured them. They
spill no register, as `python -m bertfast.kernels.resources` reports, but for up to 16 bytes in
float32 with relative positions.

Options stand under a precision and a size. The precision is "half" (bfloat16 and float16) or
"float". The size is the one that the kernel pads to a power of two: a head's or a row's. The cache
file is ``$BERTFAST_CACHE``, or ``~/.cache/bertfast/tuning.json``:

    {"NVIDIA H200, Triton 3.7.1": {"attention.forward": {"source": "5e0c...", "options": {"half 64":
    {"BLOCK_M": 128, ...}}}}}
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .triton_compat import triton

Options = Mapping[str, int]
FOLDER = Path(__file__).parent
# A generation's first chip stands for it. Of others the oldest is taken, which asks least of a
# chip. Some newer ones have no more shared memory (NVIDIA, "CUDA C++ Programming Guide", technical
# specifications).
GENERATIONS = {8: 80, 9: 90, 10: 100}
OLDEST = 80
SHARED_SOURCES = ("layer_norm_triton", "philox_triton", "triton_dot")  # beside the op's own

_target: int | None = None
_trying: dict[str, Options] = {}


def options(kernel: str, dtype: torch.dtype, device: torch.device, size: int = 0) -> Options:
    """The constants and launch options of a kernel that are not the call's.

    Args:
        kernel: "op.kernel", as the shipped files have it.
        dtype: of its input.
        device: of its input; the interpreter on the CPU takes the oldest generation's.
        size: of what is padded, itself a power of two; 0 where nothing is. One that is not listed
            takes the next larger one's options, or the largest one's.
    """
    if kernel in _trying:
        return _trying[kernel]
    if _target is not None or device.type != "cuda":
        return default(kernel, dtype, device, size)[1]
    return _chosen(kernel, dtype, size, device.index or 0)


def default(
    kernel: str, dtype: torch.dtype, device: torch.device, size: int = 0
) -> tuple[str, Options]:
    """The shipped options, and under which precision and size they stand; arguments as of
    `options`.
    """
    generation = _target or OLDEST
    if _target is None and device.type == "cuda":
        generation = GENERATIONS.get(torch.cuda.get_device_capability(device)[0], OLDEST)
    listed = shipped(generation)[kernel]
    precision = "float" if dtype == torch.float32 else "half"
    sizes = sorted(int(key.split()[1]) for key in listed if key.startswith(f"{precision} "))
    key = (
        f"{precision} {next((known for known in sizes if known >= size), sizes[-1])}"
        if sizes
        else precision
    )
    return key, listed[key]


@cache
def _chosen(kernel: str, dtype: torch.dtype, size: int, device: int) -> Options:
    key, usual = default(kernel, dtype, torch.device("cuda", device), size)
    entry = read_cache(cache_file()).get(machine(device), {}).get(kernel, {})
    found = entry["options"].get(key, usual) if entry.get("source") == source(kernel) else usual
    return found if found.keys() == usual.keys() else usual


@contextmanager
def target(capability: int) -> Iterator[None]:
    """Inside, the options are those shipped for 80, 90 or 100, for a compiler that has no GPU."""
    global _target
    before, _target = _target, capability
    try:
        yield
    finally:
        _target = before


@contextmanager
def trying(kernel: str, candidate: Options) -> Iterator[None]:
    """Inside, this kernel is launched with these options, whatever its input."""
    _trying[kernel] = candidate
    try:
        yield
    finally:
        del _trying[kernel]


@cache
def shipped(capability: int) -> dict[str, dict[str, dict[str, int]]]:
    """Options by kernel, and by precision and size."""
    return json.loads((FOLDER / "configs" / f"sm_{capability}.json").read_text(encoding="utf-8"))


def machine(device: int) -> str:
    """What measurements are true of, beside the kernel's source."""
    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}"


@cache
def source(kernel: str) -> str:
    """A digest of the files that the kernel's code is in."""
    op = FOLDER / kernel.split(".")[0]
    files = sorted(op.glob("*.py")) if op.is_dir() else [op.with_suffix(".py")]
    files += [FOLDER / f"{name}.py" for name in SHARED_SOURCES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def cache_file() -> Path:
    """Where the measurements of this user are kept."""
    return Path(
        os.environ.get("BERTFAST_CACHE") or os.path.expanduser("~/.cache/bertfast/tuning.json")
    )


@cache
def read_cache(path: Path) -> dict[str, Any]:
    """A cache file's content; nothing, and a line on standard error, where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _check(found)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        print(
            f"bertfast: {path}: is no tuning cache and is ignored ({reason}); "
            "`bertfast tune` makes one",
            file=sys.stderr,
        )
        return {}
    return found


def _check(found: Any) -> None:
    """Raises ValueError unless a cache file's content has the form that it should."""
    for entry in _values(found, "the file"):
        for kernel in _values(entry, "a GPU's entry"):
            _values(kernel, "a kernel's entry")
            if not isinstance(kernel.get("source"), str):
                raise ValueError("a kernel's source is no text")
            for candidate in _values(kernel.get("options"), "a kernel's options"):
                for value in _values(candidate, "a size's options"):
                    if type(value) is not int or value < 1:
                        raise ValueError(f"an option is {value!r}, no whole number above 0")


def _values(found: Any, name: str) -> list[Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no mapping")
    return list(found.values())


def save(kernel: str, key: str, found: Options, device: int) -> None:
    """Writes the options of a kernel for a precision and size into the cache file, all of it or,
    where that fails, nothing.

    Raises:
        OSError: the file cannot be written.
    """
    path = cache_file()
    read_cache.cache_clear()
    content = read_cache(path)
    kernels = content.setdefault(machine(device), {})
    if kernels.get(kernel, {}).get("source") != source(kernel):
        kernels[kernel] = {"source": source(kernel), "options": {}}
    kernels[kernel]["options"][key] = dict(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        read_cache.cache_clear()
        _chosen.cache_clear()
