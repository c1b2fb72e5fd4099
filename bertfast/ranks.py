"""The processes of one run: how many there are, how they meet, and how one that fails ends all.

torchrun says which rank a process is in its environment, and so does SLURM's srun. The ranks meet
in a `torch.distributed.TCPStore`, before and beside the process group that sums gradients. Through
it one rank alone reports what ended the run, and each sees that its neighbour still lives.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError

TIMEOUT = 600.0  # seconds without a step after which the ranks hang
BEAT, LOST = 1.0, 20.0  # seconds between signs of life, and without one until a rank is gone
MEETING = 300.0  # seconds until each rank must have come
LEAVING = 60.0  # seconds that a rank waits for others, which end too
STACKS = "stacks"  # the folder, in a run's, of what each rank was doing when the run hung


@dataclass(frozen=True)
class Place:
    """Which process of the run this is.

    Attributes:
        rank: from 0.
        size: how many ranks there are.
        local_rank: from 0 on each machine.
        address, port: where the ranks meet.
        serves: whether this process keeps the store that they meet in.
        restarts: how often the launcher has started the ranks anew.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    serves: bool = False
    restarts: int = 0


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, from torchrun's variables or srun's; alone where there are none.

    Raises:
        BertfastError: a variable has no value that can be.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        rank, size, local, port = (
            _number(environment, name)
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
        address = environment.get("MASTER_ADDR", "127.0.0.1")
        keeper = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT")
    elif "SLURM_STEP_NUM_TASKS" in environment:
        rank, size, local = (
            _number(environment, name)
            for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        )
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
        address = first_host(nodes)
        # Of a step of its own, so that two steps of a job do not meet.
        step = _number(environment, "SLURM_STEP_ID") % 100
        port = 20_000 + (_number(environment, "SLURM_JOB_ID") * 100 + step) % 40_000
        keeper, restarts = False, _number(environment, "SLURM_RESTART_COUNT")
    else:
        return Place()
    if not 0 <= rank < size or local < 0:
        raise BertfastError(
            f"the launcher says rank {rank}, of {size}, {local} on its machine; a rank is at least "
            "0 and below their number"
        )
    if size == 1:
        return Place(restarts=restarts)
    return Place(rank, size, local, address, port, rank == 0 and not keeper, restarts)


def first_host(nodes: str) -> str:
    """The first name of a SLURM list such as ``gpu[003-010,012],login1``."""
    match = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    assert match is not None
    before, number, after = match.groups(default="")
    return f"{before}{number}{after}" or "127.0.0.1"


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "0")
    try:
        return int(text)
    except ValueError:
        raise BertfastError(f"{name} is {text!r}; it must be a whole number") from None


class Ranks:
    """The ranks of a run; of one process alone, of which nothing is asked.

    Args:
        place: of this process.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.rank, self.size = self.place.rank, self.place.size
        self.store: Any = None  # where the ranks meet; None where this process is alone
        self.timeout = TIMEOUT
        self._runs = 0  # that these ranks joined for; each has keys of its own
        self.folder: Path | None = None
        self._moved: float | None = None  # when the last step was done
        self._left = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the run's files."""
        return self.rank == 0

    def device(self, name: str | None) -> str | None:
        """The device of this rank: of the GPUs of its machine the one with its number, where the
        user names none.

        Raises:
            BertfastError: there are fewer GPUs.
        """
        import torch

        if self.size == 1 or name not in (None, "cuda") or not torch.cuda.is_available():
            return name
        if self.place.local_rank >= torch.cuda.device_count():
            raise BertfastError(
                f"rank {self.rank} is number {self.place.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start as many ranks there, or --device cpu"
            )
        torch.cuda.set_device(self.place.local_rank)
        return f"cuda:{self.place.local_rank}"

    def meet(self) -> None:
        """Finds the store that the ranks meet in.

        Raises:
            BertfastError: the others did not come.
        """
        if self.size == 1 or self.store is not None:
            return
        self.store = self._connect(self.place.serves)
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _connect(self, serves: bool) -> Any:
        import torch.distributed as dist

        place = self.place
        try:
            store = dist.TCPStore(
                place.address,
                place.port,
                place.size,
                serves,
                timeout=timedelta(seconds=MEETING),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:
            raise BertfastError(
                f"rank {place.rank} cannot meet the others at {place.address}:{place.port} "
                f"({_first_line(error)}); start all ranks, and let no other run have the port"
            ) from error
        # After a restart the old keys are still there.
        return dist.PrefixStore(f"bertfast/{place.restarts}", store)

    def speaks(self) -> bool:
        """Whether this process is the one that says what ended the run: the first that asks."""
        if self.size == 1:
            return True
        try:
            self.meet()
            return int(self.store.add("ended", 1)) == 1
        except (RuntimeError, BertfastError):  # the store went with rank 0, which says no more
            return self.rank == 1

    def linger(self) -> None:
        """Keeps the store until all ranks have asked it, after an error."""
        deadline = time.monotonic() + LOST / 4
        while self.place.serves and self.store is not None and time.monotonic() < deadline:
            if int(self.store.add("ended", 0)) >= self.size:
                return
            time.sleep(0.05)

    def agree(self, values: Mapping[str, str]) -> None:
        """Raises BertfastError unless these are rank 0's values too."""
        if self.size == 1:
            return
        for name, value in values.items():
            key = f"same/{name}"
            if self.first:
                self.note(key, value)
                continue
            theirs = self.wait(key)
            if theirs != value:
                raise BertfastError(
                    f"rank {self.rank} on {socket.gethostname()} has {name} {_short(value)}, and "
                    f"rank 0 has {_short(theirs)}; every rank must have the same"
                )

    def wait(self, key: str) -> str:
        """The text of a key of the store, once a rank has set it; it may take hours until then.

        Raises:
            BertfastError: the run has ended meanwhile.
        """
        key, ended = self._key(key), 0.0
        while not self.store.check([key]):
            time.sleep(0.05)
            ended = self.store.check(["ended"]) and (ended or time.monotonic())
            if ended and time.monotonic() - ended > LOST / 4:
                raise BertfastError("another rank has ended the run")  # and has said why
        return bytes(self.store.get(key)).decode()

    def note(self, key: str, value: str = "") -> None:
        """Sets a key that others `wait` for."""
        if self.size > 1:
            self.store.set(self._key(key), value)

    def _key(self, name: str) -> str:
        return f"{self._runs}/{name}"

    @contextmanager
    def joined(
        self,
        device: Any,
        folder: Path,
        timeout: float = TIMEOUT,
        same: Mapping[str, str] | None = None,
    ) -> Iterator[Ranks]:
        """The process group of the ranks, watched until the block ends.

        Args:
            device: that this rank computes on; NCCL serves GPUs, gloo the CPU.
            folder: of the run, where the stacks of ranks that hang go.
            timeout: seconds without a step after which they hang.
            same: what each rank must have as rank 0 has it, by name.

        Raises:
            BertfastError: a rank is lost, or has something else.
        """
        if self.size == 1:
            yield self
            return
        import torch.distributed as dist

        self.meet()
        self._runs += 1
        self._left.clear()
        with self.errors():
            self.agree(same or {})
        self.timeout, self.folder = timeout, folder
        self._watch = threading.Thread(target=self._look, name="bertfast-ranks", daemon=True)
        self._watch.start()
        with self.errors():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore(self._key("group"), self.store),
                rank=self.rank,
                world_size=self.size,
                # The watch comes first.
                timeout=timedelta(seconds=2 * max(timeout, MEETING)),
                **({"device_id": device} if device.type == "cuda" else {}),
            )
        with self.errors():
            yield self
        self.pause()
        self._leave()
        dist.destroy_process_group()

    def moved(self) -> None:
        """Says that a step was done."""
        self._moved = time.monotonic()

    def pause(self) -> None:
        """Lets the ranks take as long as they need until the next step."""
        self._moved = None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what a collective says when a rank is lost into one line."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_a_collective(error):
                raise
            raise BertfastError(f"{self._who_is_lost()}; {self.advice()}") from error

    def advice(self) -> str:
        """How to go on after a rank was lost."""
        return (
            "checkpoints are kept: go on with --resume, on as many ranks or others (torchrun "
            "--max-restarts N does so by itself)"
        )

    def _who_is_lost(self) -> str:
        """The ranks that give no sign of life, in words."""
        try:
            before = self._beats()
            time.sleep(2.5 * BEAT)
            after = self._beats()
        except RuntimeError:
            return "rank 0 is lost"
        silent = [str(rank) for rank in before if before[rank] == after[rank] != "left"]
        named = f"rank{'s' * (len(silent) > 1)} {', '.join(silent)}" if silent else "a rank"
        return f"{named} of {self.size} {'are' if len(silent) > 1 else 'is'} lost"

    def _beats(self) -> dict[int, str]:
        """The last sign of life of each rank, of the first thousand."""
        keys = {rank: self._key(f"beat/{rank}") for rank in range(min(self.size, 1000))}
        known = {rank: key for rank, key in keys.items() if self.store.check([key])}
        return {rank: bytes(self.store.get(key)).decode() for rank, key in known.items()}

    def _look(self) -> None:
        """Gives signs of life, and looks for the next rank's; ends the process where the run is at
        an end or hangs. A thread, for the main one may stand in a collective for ever.
        """
        self._offer_stack()
        try:
            self._look_on(self._connect(False))
        except (RuntimeError, BertfastError):
            if not self._left.wait(5):  # the main thread may know more
                self._end("rank 0 is lost")

    def _look_on(self, store: Any) -> None:
        neighbour, count = (self.rank + 1) % self.size, 0
        process = f"{os.getpid()} {socket.gethostname()}"
        seen, since = "", time.monotonic()
        ended: float | None = None
        while not self._left.wait(BEAT):
            count += 1
            store.set(self._key(f"beat/{self.rank}"), f"{count} {process}")
            now = time.monotonic()
            if store.check([self._key("hung")]):
                self._dump()
                os._exit(2)
            if ended is None and store.check(["ended"]):
                ended = now
            # The main thread ends by itself unless it stands in a collective.
            if ended is not None and now - ended > LOST / 4:
                os._exit(2)
            key = self._key(f"beat/{neighbour}")
            beat = bytes(store.get(key)).decode() if store.check([key]) else ""
            if beat != seen:
                seen, since = beat, now
            if beat and beat != "left" and now - since > min(LOST, self.timeout):
                self._ask_stack(beat)
                self._hang(store, f"rank {neighbour} gave no sign of life for {now - since:.0f} s")
            if self._moved is not None and now - self._moved > self.timeout:
                self._hang(store, f"no step was done for {self.timeout:.0f} s")

    def _hang(self, store: Any, what: str) -> None:
        """Ends all ranks, with their stacks."""
        self._dump()
        assert self.folder is not None
        # Before the others hear of it: the launcher ends all ranks once one has gone.
        self._say(f"{what}; what each rank was doing is in {self.folder / STACKS}")
        store.set(self._key("hung"), "")
        time.sleep(3 * BEAT)  # for the other ranks' stacks
        os._exit(2)

    def _dump(self) -> None:
        """Writes what each thread of this rank is doing."""
        assert self.folder is not None
        folder = self.folder / STACKS
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"rank-{self.rank}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _offer_stack(self) -> None:
        """SIGUSR1 prints it, where a thread keeps Python from running this one."""
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    @staticmethod
    def _ask_stack(beat: str) -> None:
        """Lets the rank of this sign of life print what it is doing, if it runs on this machine."""
        _, process, host = beat.split(" ", 2)
        if host == socket.gethostname() and hasattr(signal, "SIGUSR1"):
            try:
                os.kill(int(process), signal.SIGUSR1)
            except OSError:
                return
            time.sleep(BEAT)

    def _end(self, what: str) -> None:
        """Ends this process, and says so if no other rank has said why."""
        self._say(what)
        os._exit(2)

    def _say(self, what: str) -> None:
        if self.speaks():
            print(f"error: {what}; {self.advice()}", file=sys.stderr, flush=True)

    def _leave(self) -> None:
        """The end of the run: nobody looks for a sign of life any more."""
        self._left.set()
        assert self._watch is not None
        self._watch.join()
        try:
            self.note(f"beat/{self.rank}", "left")
            count = self.store.add(self._key("left"), 1)
            deadline = time.monotonic() + LEAVING
            # The one that keeps the store goes last.
            while self.place.serves and count < self.size and time.monotonic() < deadline:
                time.sleep(0.05)
                count = self.store.add(self._key("left"), 0)
        except RuntimeError:
            return


@functools.cache
def launched() -> Ranks:
    """This process among the ranks that a launcher started with it; alone where none did.

    Raises:
        BertfastError: as of `find_place`.
    """
    return Ranks(find_place())


def _is_of_a_collective(error: RuntimeError) -> bool:
    import torch.distributed as dist

    words = ("gloo", "nccl", "connection", "broken pipe", "tcpstore", "timed out")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."
