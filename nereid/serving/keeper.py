"""Stands between a supervisor and one process it has started: whichever of the two dies, nothing that was started stays.

Run as a script with the standard library alone: `python -I -S keeper.py LIFELINE FOLDER COMMAND...`. LIFELINE is a socket
whose other end only the supervisor holds; FOLDER ("" for none) is removed, with the shared memory listed in its `regions`,
once the supervisor is dead. Knows nothing of Triton or of what it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
REGIONS = "regions"
"""A file in FOLDER: names that shared memory of the kept processes begins with, one a line."""


def main(lifeline: int, folder: str, command: list[str]) -> int:
    libc = ctypes.CDLL(None)
    # Orphans among the descendants become children of this process, so that they can be found and ended.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(lifeline, False)
    child = _spawn(libc, command)
    with contextlib.suppress(OSError):
        os.write(lifeline, f"{child}\n".encode())
    status = _keep(child, lifeline, wakeup)
    if status is None:  # the supervisor is gone
        end_descendants()
        if folder:
            remove_shared_memory(Path(folder))
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _spawn(libc: ctypes.CDLL, command: list[str]) -> int:
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        # One thread here, which lives as long as the process: the signal comes when the keeper dies, and not before.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
    os._exit(127)


def _keep(child: int, lifeline: int, wakeup: int) -> int | None:
    """Wait for the end of the child (its status) or of the supervisor (None); pass SIGTERM on."""
    status: int | None = None
    while True:
        readable, _, _ = select.select([lifeline, wakeup], [], [])
        if wakeup in readable:
            if signal.SIGTERM in os.read(wakeup, 64):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            for pid, ended in _reap():
                if pid == child:
                    status = ended
            if status is not None:
                return status
        if lifeline in readable:
            try:
                alive = bool(os.read(lifeline, 64))
            except OSError:
                alive = False
            if not alive:
                return None


def _reap() -> list[tuple[int, int]]:
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def end_descendants(seconds: float = 10.0) -> None:
    """Kill everything below this process, again and again until nothing is left: a killed one's children come up here."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        if not descendants(os.getpid()):
            return
        time.sleep(0.01)


def descendants(root: int) -> list[int]:
    """Processes below `root`, children before their children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # After the name, which may hold spaces and brackets: state, parent, ...
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    level = children.get(root, [])
    while level:
        found += level
        level = [grandchild for child in level for grandchild in children.get(child, [])]
    return found


def remove_shared_memory(folder: Path) -> None:
    """Remove the shared memory whose names begin as a line of the folder's list says."""
    try:
        prefixes = (folder / REGIONS).read_text().split()
    except OSError:
        return
    for prefix in prefixes:
        if "/" not in prefix and len(prefix) > 8:
            for file in SHARED_MEMORY.glob(f"{prefix}*"):
                with contextlib.suppress(OSError):
                    file.unlink()


if __name__ == "__main__":
    # At once: while Python takes itself down, a late SIGTERM would have the last word on the exit code.
    os._exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
