"""How OpenMP's threads wait: they spin while a process has the processors to itself, and sleep
while others want them.

A thread that has done its part of a parallel region spins before it sleeps: 300,000 turns with
libgomp, which PyTorch ships on Linux. Two processes then take the processor from one another: a
thread spins for a partner that its own spinning keeps from running. Sleeping at once
(``OMP_WAIT_POLICY=passive``) is no cure, since every region then pays for waking its threads. No
number of turns between is right both alone and beside others; docs/cpu.md has the measurements.

So the C++ kernels watch Linux's Pressure Stall Information, which says how long tasks were ready
and had no processor. By it they switch libgomp between the two (csrc/bindings/spin.cpp). Where
there is no such file, or another runtime serves, ``import bertfast`` asks for a short spin instead.
That a runtime reads once, when it starts, so there ``import bertfast`` must come before ``import
torch``. What the user has set is left as it is.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import processor

# Turns of libgomp's loop, a pause each, where nothing tells whether others want the processors:
# about 0.4 ms, a compromise. A pause takes 140 cycles on Intel's processors since Skylake, and 40
# to 65 on AMD's. Elsewhere it takes one or two, and libgomp's own 300,000 turns are as short.
TURNS = {"GenuineIntel": 10_000, "AuthenticAMD": 25_000}
BLOCKTIME = 1  # milliseconds, the least but none, of Intel's and LLVM's runtimes
POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
BLOCKS, LIBRARY = "KMP_BLOCKTIME", "KMP_LIBRARY"
READ = (POLICY, SPINS, BLOCKS, LIBRARY, "OMP_NUM_THREADS")
PRESSURE = ("/sys/fs/cgroup/cpu.pressure", "/proc/pressure/cpu")
RUNTIME = re.compile(r"lib(gomp|iomp5|omp)\b[^/]*\.(so|dylib)")
# Of each runtime, what it does by itself, and the variables that decide it, the strongest first.
DEFAULTS = {
    "libgomp": "spin 300,000 turns, then sleep",
    "libiomp": "spin 200 ms, then sleep",
    "libomp": "spin 200 ms, then sleep",
}
DECIDES = {
    "libgomp": (SPINS, POLICY),
    "libiomp": (BLOCKS, LIBRARY, POLICY),
    "libomp": (BLOCKS, LIBRARY, POLICY),
}
MEANINGS = {
    (SPINS, ""): "spin {} turns, then sleep",
    (SPINS, "0"): "sleep at once",
    (BLOCKS, ""): "spin {} ms, then sleep",
    (BLOCKS, "0"): "sleep at once",
    (LIBRARY, ""): "as KMP_LIBRARY={} says",
    (POLICY, ""): "spin without end",
    (POLICY, "passive"): "sleep at once",
}
DEFAULT = "the runtime's default"
SWITCHED = "spin 300,000 turns, then sleep; sleep at once while others want the processors"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and did.

    Attributes:
        pressure: the file by which libgomp's threads are switched; empty where they are not.
        late: whether PyTorch had been imported, or libgomp loaded, before.
        ours: the variables that `prepare` set.
        environment: the variables that a runtime reads, as they were once it was done.
    """

    pressure: str
    late: bool
    ours: dict[str, str]
    environment: dict[str, str]


def vendor() -> str:
    """The processor's maker as its CPUID spells it; empty where the system does not say."""
    return processor.fields().get("vendor_id", "")


def pressure_file(environment: Mapping[str, str]) -> str:
    """The file that says how long tasks waited for a processor, of this process's control group or
    of the machine.

    Empty where the kernel keeps none, where ``environment`` says how libgomp's threads wait, and
    where the C++ kernels, which read it, are not built.
    """
    if {POLICY, SPINS} & environment.keys() or find_spec("bertfast._C") is None:
        return ""
    groups: list[str] = []
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = [
        f"/sys/fs/cgroup{name[3:].rstrip('/')}/cpu.pressure" for name in groups if name[:3] == "0::"
    ]
    for path in (*own, *PRESSURE):
        with suppress(OSError):
            if Path(path).read_text(encoding="utf-8").startswith("some "):
                return path
    return ""


def variables_to_set(environment: Mapping[str, str], pressure: str = "") -> dict[str, str]:
    """The variables to set beside those of ``environment``, none that the user's own decide.

    libgomp's are set only where there is no ``pressure`` file to switch it by.
    """
    found = {}
    # The vendor is asked last: Linux takes a while to say it where there are many cores.
    if not pressure and not {POLICY, SPINS} & environment.keys():
        turns = TURNS.get(vendor())
        if turns is not None:
            found[SPINS] = str(turns)
    if not {POLICY, BLOCKS, LIBRARY} & environment.keys():
        found[BLOCKS] = str(BLOCKTIME)
    return found


def loaded() -> list[str]:
    """The files of OpenMP runtimes that this process has loaded; empty where the system does not
    say.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(None, 5)[5] for line in lines if line.count("/")}
    return sorted(path for path in paths if RUNTIME.match(path.rsplit("/", 1)[-1]))


def prepare() -> Prepared:
    """Finds the file to switch libgomp by, and sets the variables that ask for a short spin unless
    the runtime has started.
    """
    late = "torch" in sys.modules or any(
        path.rsplit("/", 1)[-1].startswith("libgomp.so") for path in loaded()
    )
    pressure = pressure_file(os.environ)
    ours = {} if late else variables_to_set(os.environ, pressure)
    os.environ.update(ours)
    read = {name: os.environ[name] for name in READ if name in os.environ}
    return Prepared(pressure, late, ours, read)


PREPARED = prepare()


def runtime() -> str:
    """Which runtime PyTorch runs on: libgomp, libiomp or libomp."""
    names = [path.rsplit("/", 1)[-1] for path in loaded()]
    # One that is preloaded, as Intel advises, serves in place of the one that PyTorch ships.
    for name in ("libiomp", "libomp"):
        if any(found.startswith(name) for found in names):
            return name
    return "libomp" if sys.platform == "darwin" else "libgomp"


def switches() -> bool:
    """Whether the C++ kernels switch how this process's threads wait."""
    return bool(PREPARED.pressure) and runtime() == "libgomp"


def report() -> dict[str, Any]:
    """How this process waits, as plain JSON values: what is in force, who set it, what to do.

    What the runtime read is taken from the environment as `prepare` left it. A variable that was
    changed between the runtime's start and ``import bertfast`` cannot be told.
    """
    name, environment = runtime(), PREPARED.environment
    setter = next((variable for variable in DECIDES[name] if variable in environment), None)
    switched = switches()
    if switched:
        waiting, by = SWITCHED, f"bertfast, by {PREPARED.pressure}"
    elif setter is None:
        waiting, by = DEFAULTS[name], DEFAULT
    else:
        value = environment[setter]
        waiting = MEANINGS.get((setter, value.lower())) or MEANINGS[setter, ""].format(value)
        by = "bertfast" if setter in PREPARED.ours else f"{setter} in the environment"
    return {
        "runtime": name,
        "loaded": loaded(),
        "waiting": waiting,
        "set_by": by,
        "environment": environment,
        "late": PREPARED.late,
        "advice": "nothing" if switched else _advice(name, setter),
    }


def _advice(name: str, setter: str | None) -> str:
    """What the user may do about how this process waits."""
    if setter is not None and setter not in PREPARED.ours:
        return f"nothing: your {setter} is kept; without it bertfast chooses"
    better = variables_to_set({}).get(DECIDES[name][0])
    if setter is not None or better is None:
        return "nothing"
    return (
        f"import bertfast before torch, or set {DECIDES[name][0]}={better} before Python starts; "
        "else two trainings at once slow one another down more than twofold"
    )


def warn_if_late(threads: int) -> None:
    """Warns, once a process, where ``import torch`` came before ``import bertfast`` and so many
    threads wait by the runtime's default.
    """
    found = report() if PREPARED.late and not switches() and threads > 1 else {}
    if found.get("set_by") == DEFAULT and found["advice"] != "nothing":
        warnings.warn(f"OpenMP's threads {found['waiting']}: {found['advice']}", stacklevel=3)
