"""Killed writers, full disks, second writers: the file on disk never charges less than was executed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dpft_accounting import Ledger, LedgerError, PoissonGaussian, Unit, verify

UNIT = Unit("example")
RUN = PoissonGaussian(0.01, 1.0, 10**6)

WRITER = """
import resource, sys
from dpft_accounting import Ledger, LedgerError, PoissonGaussian, Unit
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
ledger = Ledger.open(sys.argv[1], "data", Unit("example"))
run = ledger.run("a", PoissonGaussian(0.01, 1.0, 10**6))
print("ready", flush=True)
executed = 0
while True:
    try:
        run.reserve()
    except LedgerError as problem:
        print("stopped:", problem, flush=True)
        raise SystemExit(problem.exit_code)
    executed += 1  # the noise of a step is drawn here
    run.step()
    print(executed, flush=True)
    if executed % 7 == 0:
        run.commit()
"""


def start(path: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=60)
    return output.split("\n")[:-1]


def open_ledger(path: Path) -> Ledger:
    return Ledger.open(path, "data", UNIT)


def kill_and_check(path: Path, delay: float) -> None:
    """Kill a writer after ``delay`` seconds: its steps must be charged, and the next session works."""
    before = Ledger.read(path).runs()["a"].reserved if path.exists() else 0
    process = start(path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.kill()
    executed = [int(line) for line in finish(process) if line.isdigit()]
    assert process.returncode == -signal.SIGKILL
    assert Ledger.read(path).runs()["a"].reserved >= before + (executed[-1] if executed else 0)
    with open_ledger(path) as ledger:
        assert ledger.run("a", RUN).charged >= before + (executed[-1] if executed else 0)
    assert verify(path).torn_bytes == 0


def test_a_killed_writer_is_charged_for_every_step(tmp_path: Path) -> None:
    """E2, G4: SIGKILL at random moments; the ledger is never below the steps executed."""
    draw = random.Random(1)
    for _ in range(3):
        kill_and_check(tmp_path / "ledger", draw.uniform(0, 0.1))


@pytest.mark.slow
def test_a_writer_killed_thirty_times_is_charged_for_every_step(tmp_path: Path) -> None:
    """E2, G4."""
    draw = random.Random(2)
    for _ in range(30):
        kill_and_check(tmp_path / "ledger", draw.uniform(0, 0.3))


def test_a_second_process_meets_the_lock(tmp_path: Path) -> None:
    """G4: and gets through when the first has died."""
    path = tmp_path / "ledger"
    process = start(path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        with pytest.raises(LedgerError, match="Another process"):
            open_ledger(path)
        assert Ledger.read(path).runs()["a"].mech == RUN
    finally:
        process.kill()
        finish(process)
    open_ledger(path).close()


def test_a_second_writer_in_this_process_meets_the_lock(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger"), pytest.raises(LedgerError, match="Another process"):
        open_ledger(tmp_path / "ledger")


def test_a_forked_child_cannot_write(tmp_path: Path) -> None:
    """A data-loading worker inherits the lock; two writers would break the chain."""
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        run.reserve()
        before = path.read_bytes()
        child = os.fork()
        if child == 0:
            try:
                run.reserve()
            except LedgerError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert path.read_bytes() == before
        run.reserve()


def test_a_file_size_limit_stops_the_run_and_leaves_a_sound_file(tmp_path: Path) -> None:
    """G4: the kernel refuses a write half way; nothing partial stays, nothing is under-counted."""
    path = tmp_path / "ledger"
    process = start(path, "3000")
    output = finish(process)
    executed = [int(line) for line in output if line.isdigit()]
    assert process.returncode == 3
    assert "Nothing was reserved" in output[-1]
    found = verify(path)
    assert found.torn_bytes == 0
    assert found.reserved == executed[-1]
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        run.reserve()


@pytest.mark.parametrize("written", [0, 1, 40, 10**6])
def test_a_full_disk_is_reported_and_nothing_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """G4: a write that fails after some bytes (or at fsync, after all of them) is taken back."""
    path = tmp_path / "ledger"
    real_write, real_sync = os.pwrite, os.fsync
    calls = 0

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1 and written:
            return real_write(fd, data[:written], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing_sync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_sync(fd)

    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve(2)
        run.step()
        before = path.read_bytes()
        monkeypatch.setattr(os, "pwrite", full)
        monkeypatch.setattr(os, "fsync", failing_sync if written == 10**6 else real_sync)
        with pytest.raises(LedgerError, match="Nothing was reserved"):
            run.reserve()
        monkeypatch.undo()
        assert run.charged == 2
        assert path.read_bytes() == before
        with pytest.raises(LedgerError, match="open it again"):
            run.reserve()
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        assert run.charged == 2
        run.reserve()


@pytest.mark.parametrize("moment", ["before the write", "after the write", "after the sync"])
def test_an_interrupt_while_writing_ends_the_session_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """G4: a signal between disk and memory must not let the next record overwrite the last one."""
    path = tmp_path / "ledger"
    real = {"pwrite": os.pwrite, "fsync": os.fsync}

    def interrupt_write(*arguments: object) -> None:
        raise KeyboardInterrupt

    def interrupt_sync(fd: int) -> None:
        if moment == "after the sync":
            real["fsync"](fd)
        raise KeyboardInterrupt

    def train(ledger: Ledger) -> None:
        with ledger.run("a", RUN) as run:
            run.reserve(2)
            run.step()
            if moment == "before the write":
                monkeypatch.setattr(os, "pwrite", interrupt_write)
            else:
                monkeypatch.setattr(os, "fsync", interrupt_sync)
            run.reserve(3)

    with open_ledger(path) as ledger, pytest.raises(KeyboardInterrupt):
        train(ledger)
    monkeypatch.undo()
    assert verify(path).reserved == (2 if moment == "before the write" else 5)
    with open_ledger(path) as ledger, ledger.run("a", RUN) as run:
        run.reserve()


def test_a_disk_too_broken_to_take_a_write_back_is_repaired_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4."""
    path = tmp_path / "ledger"
    real_write = os.pwrite
    pieces = iter([30])

    def full(fd: int, data: bytes, offset: int) -> int:
        for piece in pieces:
            return real_write(fd, data[:piece], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve()
        monkeypatch.setattr(os, "pwrite", full)
        monkeypatch.setattr(os, "ftruncate", broken)
        with pytest.raises(LedgerError):
            run.reserve()
        monkeypatch.undo()
    assert verify(path).torn_bytes == 30
    with open_ledger(path) as ledger:
        assert ledger.runs()["a"].reserved == 1
    assert "30 bytes" in path.read_text().splitlines()[-1]


def test_an_incomplete_last_line_is_cut_at_every_length(tmp_path: Path) -> None:
    """E2, G4: cut under the lock and noted; a line that lacks only its newline counts."""
    path = tmp_path / "ledger"
    with open_ledger(path) as ledger:
        run = ledger.run("a", RUN)
        run.reserve(2)
        start_of_last = path.stat().st_size
        run.reserve(3)
    whole = path.read_bytes()
    for end in range(start_of_last + 1, len(whole)):
        path.write_bytes(whole[:end])
        charged = 5 if end == len(whole) - 1 else 2
        assert Ledger.read(path).runs()["a"].reserved == charged
        with open_ledger(path) as ledger:
            assert ledger.runs()["a"].reserved == charged
        assert verify(path).torn_bytes == 0
        assert verify(path).reserved == charged


def test_a_crash_before_the_header_was_complete_starts_over(tmp_path: Path) -> None:
    """G4."""
    path = tmp_path / "ledger"
    open_ledger(path).close()
    header = path.read_bytes()
    for end in (0, 1, 50, 100, len(header) - 1):
        path.write_bytes(header[:end])
        open_ledger(path).close()
        assert path.read_bytes().startswith(header)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="empty"):
        Ledger.read(path)


def test_zeros_after_a_power_cut_are_cut(tmp_path: Path) -> None:
    """G4: some file systems extend the file before the data arrive."""
    path = tmp_path / "ledger"
    open_ledger(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    with open_ledger(path) as ledger:
        ledger.run("a", RUN).close()
    assert verify(path).runs == 1


@pytest.mark.parametrize("content", [b"my notes", b"{}", b"\x89PNG", b'{"seq":1', b"a,b\n1,2\n"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """I4: a mistaken path must not cost the user a file."""
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        open_ledger(path)
    assert path.read_bytes() == content


def test_paths_that_cannot_be_a_ledger_are_refused(tmp_path: Path) -> None:
    """I4: folders, missing folders, symbolic links, pipes and huge files."""
    open_ledger(tmp_path / "real").close()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name in (".", "missing/ledger", "link", "pipe", "huge"):
        with pytest.raises(LedgerError):
            open_ledger(tmp_path / name)
    for name in (".", "missing/ledger", "pipe", "huge"):
        with pytest.raises(LedgerError):
            Ledger.read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only files")
def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    """G4."""
    path = tmp_path / "ledger"
    open_ledger(path).close()
    path.chmod(0o444)
    with pytest.raises(LedgerError, match="writing"):
        open_ledger(path)


def test_a_replaced_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locking a file that no longer has the name would let two writers in."""
    import fcntl

    path = tmp_path / "ledger"
    open_ledger(path).close()
    real = fcntl.flock

    def replace_first(fd: int, how: int) -> None:
        path.unlink()
        path.touch()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with pytest.raises(LedgerError, match="replaced"):
        open_ledger(path)
