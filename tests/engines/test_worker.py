"""A worker process from birth to death: it is watched, replaced, and never left over."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.engines.channel import BrokenChannelError, Channel, Message
from nereid.engines.worker import Worker, WorkerOptions

from waiting import until

sys.path.insert(0, str(Path(__file__).parent))


class Kept:
    """An owner that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, Any]] = queue.Queue()

    def ready(self, facts: Mapping[str, Any]) -> None:
        self.told.put(("ready", facts))

    def message(self, message: Message) -> None:
        self.told.put(("message", message))

    def died(self, reason: str) -> None:
        self.told.put(("died", reason))

    def next(self) -> tuple[str, Any]:
        return self.told.get(timeout=60)


Pair = tuple[Worker, Kept]


def start(**options: Any) -> Pair:
    kept = Kept()
    settings = {"function": "toy_worker:run", "name": "toy", "silent_seconds": 60.0, "watchdog_seconds": 60.0, **options}
    return Worker(WorkerOptions(**settings), kept), kept


@pytest.fixture
def pair() -> Iterator[Pair]:
    worker, kept = start()
    assert kept.next()[0] == "ready"
    yield worker, kept
    worker.stop()


def gone(pid: int) -> bool:
    """Whether the process has ended: reaped, or a zombie that its new parent has still to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def test_what_is_sent_comes_back_whole(pair: Pair) -> None:
    worker, kept = pair
    values = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros((0, 4), np.float64)}
    worker.send(Message("say", {"text": "grüße", "x": 0.1}, values))
    _, answer = kept.next()
    assert (answer.kind, answer.body["text"], answer.body["x"]) == ("echo", "grüße", 0.1)
    for name, value in values.items():
        assert answer.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(answer.arrays[name], value)


def test_its_command_line_names_what_it_serves(pair: Pair) -> None:
    worker, _ = pair
    words = Path(f"/proc/{worker.pid}/cmdline").read_bytes().decode().split("\0")
    assert words[words.index("--name") + 1] == "toy"


@pytest.mark.parametrize("end", ["kill", "exit", "garbage"])
def test_one_that_dies_is_reaped_and_replaced(pair: Pair, end: str) -> None:
    worker, kept = pair
    pid = worker.pid
    assert pid is not None
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        worker.send(Message(end))
    assert kept.next()[0] == "died"
    assert not Path(f"/proc/{pid}").exists()
    kind, facts = kept.next()
    assert kind == "ready"
    assert facts["pid"] != pid
    worker.send(Message("say"))
    assert kept.next()[1].body["pid"] == facts["pid"]


def test_one_that_hangs_or_is_stopped_or_grows_is_killed() -> None:
    for options, harm in (
        ({"watchdog_seconds": 0.5}, lambda w: w.send(Message("hang"))),
        ({"silent_seconds": 2.0}, lambda w: os.kill(w.pid, signal.SIGSTOP)),
        ({"grows_bytes": 100 * 2**20}, lambda w: w.send(Message("grow"))),
    ):
        worker, kept = start(**options)
        try:
            assert kept.next()[0] == "ready"
            harm(worker)
            kind, reason = kept.next()
            assert (kind, any(word in reason for word in ("tick", "sign of life", "memory"))) == ("died", True)
            assert kept.next()[0] == "ready"
        finally:
            worker.stop()


def test_an_idle_worker_is_left_alone() -> None:
    worker, kept = start()
    assert kept.next()[0] == "ready"
    life = worker._life
    assert life is not None
    since = life.ticked
    until(lambda: life.ticked > since + 1)  # while it is idle every sign of life counts as a tick
    assert (life.ticks, worker.deaths) == (0, 0)
    worker.stop()


def test_a_full_socket_never_holds_up_the_sender() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    before = time.monotonic()
    for number in range(50):
        channel.send(Message("big", {"n": number}, {"x": np.zeros(200_000)}))  # 80 MB, and nobody reads
    assert time.monotonic() - before < 60
    other = Channel(theirs)
    arriving = other.receive()
    assert [next(arriving).body["n"] for _ in range(50)] == list(range(50))
    channel.close()
    other.close()


def test_a_message_that_the_socket_takes_is_written_by_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "_write_forever", lambda channel: channel._outgoing.get())
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    channel.send(Message("small", {"n": -1}))
    assert theirs.recv(4, socket.MSG_DONTWAIT) == b"NRD1"
    channel.close()
    theirs.close()


def test_messages_of_any_size_from_several_threads_never_overtake_and_are_whole() -> None:
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    arriving = other.receive()
    with ThreadPoolExecutor(3) as pool:
        for sender in range(3):
            pool.submit(lambda sender=sender: [channel.send(mixed(sender, number)) for number in range(200)])
        got = [next(arriving) for _ in range(600)]
    for sender in range(3):
        assert [message.body["n"] for message in got if message.body["sender"] == sender] == list(range(200))
    assert all((message.arrays["x"] == message.body["n"]).all() for message in got)
    channel.close()
    other.close()


def mixed(sender: int, number: int) -> Message:
    """Every tenth is more than a socket takes at once."""
    return Message("mixed", {"sender": sender, "n": number}, {"x": np.full(200_000 if number % 10 == 0 else 3, number)})


def test_a_message_that_is_too_large_is_its_senders_error_and_no_other_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    monkeypatch.setattr("nereid.engines.channel._MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="too large"):
        channel.send(Message("big", {}, {"x": np.zeros(10_000)}))
    channel.send(Message("small", {"n": 1}))
    assert next(other.receive()).body["n"] == 1
    channel.close()
    other.close()


def test_garbage_is_an_error_and_objects_do_not_cross() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(BrokenChannelError):
        next(Channel(theirs).receive())
    with pytest.raises(BrokenChannelError):
        Message.unpack(b'{"kind": "x", "body": {}, "arrays": [["a", "|O", [1]]]}', b"12345678")


def test_one_that_cannot_start_says_why() -> None:
    worker, _ = start(settings={"refuses": True})
    with pytest.raises(ValueError, match="no such model"):
        worker.wait_ready()
    worker.stop()


def test_stopping_leaves_no_process() -> None:
    worker, kept = start()
    pid = kept.next()[1]["pid"]
    worker.stop()
    assert not Path(f"/proc/{pid}").exists()


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from nereid.engines.channel import Message
from nereid.engines.worker import Worker, WorkerOptions

class Owner:
    def ready(self, facts):
        print(facts["pid"], flush=True)
    def message(self, message): ...
    def died(self, reason): ...

worker = Worker(WorkerOptions(function="toy_worker:run", name="toy"), Owner())
worker.wait_ready()
{harm}
print("harmed", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("harm", ["", "worker.send(Message('hang'))"])
def test_it_ends_with_its_parent_even_while_it_hangs(harm: str) -> None:
    script = PARENT.format(folder=str(Path(__file__).parent), harm=harm)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == b"harmed\n"
        parent.kill()
    until(lambda: gone(pid))


WATCHES = """
import sys, time
from nereid.engines.worker import Worker, WorkerOptions

class Owner:
    def ready(self, facts):
        print(facts["pid"], flush=True)

    def message(self, message):
        pass

    def died(self, reason):
        print(reason, flush=True)

worker = Worker(WorkerOptions(function="toy_worker:run", name="toy", silent_seconds=3.0, watchdog_seconds=3.0), Owner())
sys.stdin.read()
worker.stop()
"""


def test_a_worker_is_left_alone_when_all_have_stood_still() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *(folder for folder in sys.path if folder)])
    command = [sys.executable, "-c", WATCHES]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": path}) as watcher:
        assert watcher.stdout is not None
        pid = int(watcher.stdout.readline())
        for stopped in (watcher.pid, pid):
            os.kill(stopped, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(watcher.pid, signal.SIGCONT)  # it wakes first
        time.sleep(0.4)
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.0)
        said, _ = watcher.communicate(timeout=60)
    assert said == ""


def test_a_worker_is_left_alone_while_its_owner_takes_his_time() -> None:
    class Slow(Kept):
        def message(self, message: Message) -> None:
            time.sleep(2.0)
            super().message(message)

    kept = Slow()
    worker = Worker(WorkerOptions(function="toy_worker:run", name="toy", silent_seconds=1.0, watchdog_seconds=1.0), kept)
    assert kept.next()[0] == "ready"
    worker.send(Message("say", {"text": "hello"}))
    assert kept.next()[0] == "message"
    time.sleep(0.5)
    assert worker.deaths == 0
    worker.stop()
