"""How long OpenMP's threads spin where they wait, set before their runtime starts.

A thread that has done its part of a parallel region spins before it sleeps: 300,000 turns with
libgomp, which PyTorch ships on Linux. Two processes then take the processor from one another: a
thread spins for a partner that its own spinning keeps from running. Sleeping at once
(``OMP_WAIT_POLICY=passive``) is no cure, since every region then pays for waking its threads.
``import bertfast`` asks for a short spin instead; docs/cpu.md has the measurements.

A runtime reads its environment once, when it starts, so ``import bertfast`` must come before
``import torch``. What the user has set is left as it is.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Turns of libgomp's loop, a pause each: about 0.4 ms. Fewer lose more when nothing else runs, more
# leave less to a second training; docs/cpu.md has both. A pause takes 140 cycles on Intel's
# processors since Skylake, and 40 to 65 on AMD's. Elsewhere it takes one or two, and libgomp's own
# 300,000 turns are as short.
TURNS = {"GenuineIntel": 10_000, "AuthenticAMD": 25_000}
BLOCKTIME = 1  # milliseconds, the least but none, of Intel's and LLVM's runtimes
POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
BLOCKS, LIBRARY = "KMP_BLOCKTIME", "KMP_LIBRARY"
READ = (POLICY, SPINS, BLOCKS, LIBRARY, "OMP_NUM_THREADS")
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


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and did.

    Attributes:
        late: whether PyTorch had been imported, or libgomp loaded, before.
        ours: the variables that `prepare` set.
        environment: the variables that a runtime reads, as they were once it was done.
    """

    late: bool
    ours: dict[str, str]
    environment: dict[str, str]


def vendor() -> str:
    """The processor's maker as its CPUID spells it; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^vendor_id\s*:\s*(\S+)", text, re.M)
    return found[1] if found else ""


def wanted(environment: dict[str, str]) -> dict[str, str]:
    """The variables to set beside those of ``environment``, none that the user's own decide."""
    found = {}
    turns = TURNS.get(vendor())
    if turns is not None and not {POLICY, SPINS} & environment.keys():
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
    """Asks for the short spin by setting environment variables, unless the runtime has started."""
    late = "torch" in sys.modules or any(
        path.rsplit("/", 1)[-1].startswith("libgomp.so") for path in loaded()
    )
    ours = {} if late else wanted(dict(os.environ))
    os.environ.update(ours)
    return Prepared(late, ours, {name: os.environ[name] for name in READ if name in os.environ})


PREPARED = prepare()


def runtime() -> str:
    """Which runtime PyTorch runs on: libgomp, libiomp or libomp."""
    names = [path.rsplit("/", 1)[-1] for path in loaded()]
    # One that is preloaded, as Intel advises, serves in place of the one that PyTorch ships.
    for name in ("libiomp", "libomp"):
        if any(found.startswith(name) for found in names):
            return name
    return "libomp" if sys.platform == "darwin" else "libgomp"


def report() -> dict[str, Any]:
    """How this process waits, as plain JSON values: what is in force, who set it, what to do.

    What the runtime read is taken from the environment as `prepare` left it: a variable that was
    changed between the runtime's start and ``import bertfast`` cannot be told.
    """
    name, environment = runtime(), PREPARED.environment
    setter = next((variable for variable in DECIDES[name] if variable in environment), None)
    if setter is None:
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
        "advice": _advice(name, setter),
    }


def _advice(name: str, setter: str | None) -> str:
    """What the user may do about how this process waits."""
    if setter is not None and setter not in PREPARED.ours:
        return f"nothing: your {setter} is kept; without it bertfast chooses"
    better = wanted({}).get(DECIDES[name][0])
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
    found = report() if PREPARED.late and threads > 1 else {}
    if found.get("set_by") == DEFAULT and found["advice"] != "nothing":
        warnings.warn(f"OpenMP's threads {found['waiting']}: {found['advice']}", stacklevel=3)
