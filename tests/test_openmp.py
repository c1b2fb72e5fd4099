"""OpenMP's threads wait as bertfast asks, from before their runtime starts; what the user has set
stands; the doctor says what is in force.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bertfast
from bertfast import openmp
from bertfast.apps import doctor

CHOICE = openmp.variables_to_set({})  # where no file tells of pressure
RELATED = {*openmp.READ, "OMP_DISPLAY_ENV"}
needs_libgomp = pytest.mark.skipif(
    not (openmp.SPINS in CHOICE and openmp.runtime() == "libgomp"),
    reason="bertfast leaves libgomp as it is on this processor, or torch has another runtime",
)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process whose OpenMP variables are these alone; libgomp prints what it read."""
    kept = {name: value for name, value in os.environ.items() if name not in RELATED}
    path = str(Path(bertfast.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "PYTHONPATH": path, "OMP_DISPLAY_ENV": "verbose", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def spins(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What each libgomp that was loaded read of GOMP_SPINCOUNT, from its own mouth."""
    lines = done.stderr.splitlines()
    return [line.split("'")[1] for line in lines if "GOMP_SPINCOUNT = " in line]


# A system whose kernel keeps no Pressure Stall Information.
UNTOLD = """
import pathlib
read = pathlib.Path.read_text
def without_pressure(path, *args, **kwargs):
    if "pressure" in str(path):
        raise FileNotFoundError(path)
    return read(path, *args, **kwargs)
pathlib.Path.read_text = without_pressure
"""
REPORT = "import json; print(json.dumps(bertfast.openmp.report()))"


@needs_libgomp
def test_the_command_line_sets_the_spin_before_libgomp_starts_and_the_doctor_says_so() -> None:
    run = "import sys; sys.argv = ['bertfast', 'doctor', '--json']"
    run += "; from bertfast.cli import main; main()"
    done = python("-c", UNTOLD + run, OMP_NUM_THREADS="2")
    found = json.loads(done.stdout)["openmp"]
    assert set(spins(done)) == {CHOICE[openmp.SPINS]}
    assert CHOICE[openmp.SPINS] in found["at a region's end"]
    assert found["waiting set by"] == "bertfast"
    assert (found["threads"], found["threads set by"]) == (2, "OMP_NUM_THREADS in the environment")
    assert found["to do"] == "nothing"
    assert all("libgomp" in path for path in found["loaded from"])
    assert found["loaded from"]


@needs_libgomp
def test_import_bertfast_before_torch_sets_the_spin() -> None:
    done = python("-c", f"{UNTOLD}import bertfast, torch; torch.ones(9); {REPORT}")
    assert set(spins(done)) == {CHOICE[openmp.SPINS]}
    assert json.loads(done.stdout)["set_by"] == "bertfast"


@needs_libgomp
def test_after_torch_nothing_is_set_and_what_is_in_force_is_said() -> None:
    check = f"import os; assert '{openmp.SPINS}' not in os.environ"
    done = python("-c", f"{UNTOLD}import torch, bertfast; {check}; {REPORT}")
    found = json.loads(done.stdout)
    assert set(spins(done)) == {"300000"}
    assert found["late"]
    assert found["waiting"] == "spin 300,000 turns, then sleep"
    assert found["set_by"] == "the runtime's default"
    assert "import bertfast before torch" in found["advice"]
    assert f"{openmp.SPINS}={CHOICE[openmp.SPINS]}" in found["advice"]


@needs_libgomp
@pytest.mark.parametrize("first", ["bertfast, torch", "torch, bertfast"])
@pytest.mark.slow
def test_what_the_user_has_set_stands(first: str) -> None:
    run = f"import {first}; {REPORT}"
    done = python("-c", run, GOMP_SPINCOUNT="777", OMP_NUM_THREADS="1")
    found = json.loads(done.stdout)
    assert set(spins(done)) == {"777"}
    assert found["waiting"] == "spin 777 turns, then sleep"
    assert found["set_by"] == "GOMP_SPINCOUNT in the environment"
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert "your GOMP_SPINCOUNT is kept" in found["advice"]
    done = python("-c", run, OMP_WAIT_POLICY="PASSIVE")
    found = json.loads(done.stdout)
    assert set(spins(done)) == {"0"}
    assert found["waiting"] == "sleep at once"
    assert found["set_by"] == "OMP_WAIT_POLICY in the environment"


@needs_libgomp
@pytest.mark.slow
def test_a_training_started_after_torch_came_first_warns_once() -> None:
    call = "bertfast.openmp.warn_if_late(2)"
    done = python("-c", f"{UNTOLD}import torch, bertfast\nfor _ in range(2): {call}")
    assert done.stderr.count("OpenMP's threads spin 300,000 turns") == 1
    for first, variables in (("bertfast", {}), ("torch, bertfast", {"GOMP_SPINCOUNT": "777"})):
        python("-W", "error", "-c", f"{UNTOLD}import {first}; {call}", **variables)
    python("-W", "error", "-c", "import torch, bertfast; bertfast.openmp.warn_if_late(1)")


def test_child_processes_inherit_the_choice() -> None:
    child = "import os; print(os.environ['KMP_BLOCKTIME'])"
    run = (
        "import bertfast, subprocess, sys; subprocess.run([sys.executable, '-c', {!r}], check=True)"
    )
    assert python("-c", run.format(child)).stdout.strip() == CHOICE[openmp.BLOCKS]


@pytest.mark.parametrize(
    ("maker", "turns"), [("GenuineIntel", "10000"), ("AuthenticAMD", "25000"), ("", None)]
)
def test_the_turns_follow_the_processors_pause(
    monkeypatch: pytest.MonkeyPatch, maker: str, turns: str | None
) -> None:
    monkeypatch.setattr(openmp, "vendor", lambda: maker)
    assert openmp.variables_to_set({}).get(openmp.SPINS) == turns


def test_the_processor_is_asked_only_where_the_turns_depend_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openmp, "vendor", lambda: pytest.fail("the system's list was read"))
    assert set(openmp.variables_to_set({}, "/proc/pressure/cpu")) == {openmp.BLOCKS}
    assert set(openmp.variables_to_set({openmp.SPINS: "9"})) == {openmp.BLOCKS}


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"OMP_WAIT_POLICY": "active"}, set()),
        ({"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME"}),
        ({"KMP_BLOCKTIME": "0"}, {"GOMP_SPINCOUNT"}),
        ({"KMP_LIBRARY": "throughput"}, {"GOMP_SPINCOUNT"}),
        ({"OMP_NUM_THREADS": "3"}, {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}),
    ],
)
def test_nothing_that_the_users_variables_decide_is_set(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], left: set[str]
) -> None:
    monkeypatch.setattr(openmp, "vendor", lambda: "GenuineIntel")
    assert set(openmp.variables_to_set(given)) == left


@pytest.mark.parametrize(
    ("files", "environment", "waiting"),
    [
        (["/opt/lib/libiomp5.so", "/t/libgomp.so.1"], {"KMP_BLOCKTIME": "1"}, "spin 1 ms"),
        (["/opt/lib/libomp.dylib"], {"KMP_BLOCKTIME": "0"}, "sleep at once"),
        (["/opt/lib/libomp.so.5"], {"GOMP_SPINCOUNT": "9"}, "spin 200 ms"),
        (["/opt/lib/libiomp5.so"], {"OMP_WAIT_POLICY": "passive"}, "sleep at once"),
        (["/t/libgomp-a34b3233.so.1"], {"OMP_WAIT_POLICY": "active"}, "spin without end"),
    ],
)
def test_each_runtime_is_read_by_its_own_variables(
    monkeypatch: pytest.MonkeyPatch, files: list[str], environment: dict[str, str], waiting: str
) -> None:
    monkeypatch.setattr(openmp, "loaded", lambda: files)
    monkeypatch.setattr(openmp, "PREPARED", openmp.Prepared("", False, {}, environment))
    found = openmp.report()
    assert found["waiting"].startswith(waiting)
    assert Path(files[0]).name.startswith(found["runtime"])


def test_the_doctor_says_when_threads_were_set_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        openmp, "PREPARED", openmp.Prepared("", False, {}, {"OMP_NUM_THREADS": "2"})
    )
    cores = doctor.usable_cores()
    for threads, by in (
        (2, "OMP_NUM_THREADS in the environment"),
        (cores + 3, "torch.set_num_threads"),
    ):
        monkeypatch.setattr(doctor.torch, "get_num_threads", lambda threads=threads: threads)
        assert doctor._openmp()["threads set by"] == by


needs_pressure = pytest.mark.skipif(
    not openmp.pressure_file({}) or openmp.runtime() != "libgomp",
    reason="the kernel keeps no Pressure Stall Information, or torch has another runtime",
)


@needs_pressure
@pytest.mark.parametrize("first", ["bertfast, torch", "torch, bertfast"])
@pytest.mark.slow
def test_where_pressure_is_told_nothing_is_set_and_the_order_of_imports_is_free(first: str) -> None:
    done = python("-W", "error", "-c", f"import {first}; bertfast.openmp.warn_if_late(2); {REPORT}")
    found = json.loads(done.stdout)
    assert set(spins(done)) == {"300000"}
    assert "sleep at once while others want the processors" in found["waiting"]
    assert found["set_by"] == f"bertfast, by {openmp.pressure_file({})}"
    assert found["advice"] == "nothing"


@needs_pressure
@pytest.mark.parametrize("name", [openmp.SPINS, openmp.POLICY])
@pytest.mark.slow
def test_what_the_user_has_set_keeps_the_watch_away(name: str) -> None:
    run = "import bertfast.kernels, torch; bertfast.kernels.dropout(torch.ones(99), 0.1, seed=7)"
    state = "; print(bertfast.kernels.dispatch._C.spin_state()['watching'])"
    assert python("-c", run + state, OMP_NUM_THREADS="2").stdout.strip() == "True"
    assert python("-c", run + state, OMP_NUM_THREADS="1").stdout.strip() == "False"
    done = python("-c", run + state, **{name: "passive" if name == openmp.POLICY else "777"})
    assert done.stdout.strip() == "False"


# The test plays the kernel: it says in a file of its own how long tasks have waited. Whether
# threads spin is told by the processor time of a process that sleeps between two regions.
WATCH = """
import os, sys, threading, time, torch, bertfast.kernels
_C = bertfast.kernels.dispatch._C
path, waited, crowded, x = sys.argv[1], 0, False, torch.ones(1 << 18)

def say():
    global waited
    last = time.monotonic()
    while True:
        now = time.monotonic()
        waited += crowded * int((now - last) * 1e6)
        last = now
        with open(path + ".new", "w") as file:
            file.write(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={waited}\\n")
        os.replace(path + ".new", path)
        time.sleep(0.02)

def until(sleeping):
    end = time.monotonic() + 60
    while _C.spin_state()["sleeping"] != sleeping and time.monotonic() < end:
        time.sleep(0.01)
    return _C.spin_state()

def used():
    start = time.process_time()
    for _ in range(10):
        x.add_(1)
        time.sleep(0.03)
    return time.process_time() - start

threading.Thread(target=say, daemon=True).start()
time.sleep(0.1)
_C.set_pressure_file(path)
bertfast.kernels.dropout(x, 0.1, seed=7)
spinning = [used()]
for _ in range(2):
    crowded = True
    assert until(True)["sleeping"]
    asleep = used()
    crowded = False
    assert not until(False)["sleeping"]
    spinning.append(used())
    assert asleep < 0.5 * min(spinning), (asleep, spinning)
assert _C.spin_state() == {"watching": True, "sleeping": False, "switches": 2}
"""


@needs_pressure
@pytest.mark.slow
def test_threads_sleep_while_others_want_the_processors_and_spin_again_after(
    tmp_path: Path,
) -> None:
    python("-c", WATCH, str(tmp_path / "pressure"), OMP_NUM_THREADS="2")


@needs_pressure
@pytest.mark.slow
def test_a_child_made_by_fork_starts_a_watch_of_its_own() -> None:
    run = """
import os, torch, bertfast.kernels
def op():
    bertfast.kernels.dropout(torch.ones(9), 0.1, seed=7)
    return bertfast.kernels.dispatch._C.spin_state()["watching"]
torch.set_num_threads(2)
assert op()
child = os.fork()
if not child:
    state = bertfast.kernels.dispatch._C.spin_state()
    torch.set_num_threads(1)
    alone = state == {"watching": False, "sleeping": False, "switches": 0}
    os._exit(0 if alone and not op() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    python("-c", run)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/user/me\n", ["sys/fs/cgroup/user/me/cpu.pressure"], 0),
        ("0::/\n", ["sys/fs/cgroup/cpu.pressure", "proc/pressure/cpu"], 0),
        ("1:cpu:/\n", ["proc/pressure/cpu"], 0),
        ("", [], None),
    ],
)
def test_the_nearest_group_that_tells_of_pressure_is_taken(
    monkeypatch: pytest.MonkeyPatch, groups: str, files: list[str], expected: int | None
) -> None:
    told = {f"/{name}": "some avg10=0 total=1\n" for name in files} | {"/proc/self/cgroup": groups}

    def read_text(path: Path, **kwargs: object) -> str:
        if str(path) not in told:
            raise FileNotFoundError(path)
        return told[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(openmp, "find_spec", lambda name: name)
    assert openmp.pressure_file({}) == ("" if expected is None else f"/{files[expected]}")
    assert openmp.pressure_file({openmp.SPINS: "9"}) == ""
    monkeypatch.setattr(openmp, "find_spec", lambda name: None)
    assert openmp.pressure_file({}) == ""
