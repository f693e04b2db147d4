"""An append-only file of JSON lines, each carrying the SHA-256 of the line before it (without newline).

This file knows bytes, hashes, locks and crashes; what the records mean is in ``replay.py``. Guarantees:

- ``append`` returns only after the line is on the disk (fsync), and the folder was synced when the file was
  made.
- A crash while appending can leave an incomplete last line. It never counted as written, since ``append`` had
  not returned, and ``Writer.open`` cuts it off. A last line that is complete but for its newline **counts**:
  it may have been reserved for, and counting too much is safe while counting too little is not. Any other
  damage raises LedgerError.
- A failed write (disk full, file too large) is taken back; if that too fails, the next opening cuts it.
- One writer at a time, by an advisory lock; readers need none.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import LedgerBusy, LedgerError

Record = Mapping[str, Any]

FIRST_HASH = "0" * 64
_LONGEST_LINE = 64 * 1024  # a record has a few hundred bytes
_LARGEST_FILE = 1 << 30


@dataclass(frozen=True)
class Content:
    """Records of a file, the hash that the next line must carry, and the bytes they occupy.

    ``torn`` counts the bytes of an incomplete last line; ``open_ended`` says that the last record lacks its
    newline.
    """

    records: tuple[Record, ...]
    last_hash: str
    size: int
    torn: int = 0
    open_ended: bool = False


def parse(data: bytes) -> Content:
    """All records of a file, chain verified. LedgerError for any damage but an incomplete last line."""
    *lines, tail = data.split(b"\n")
    records: list[Record] = []
    last_hash = FIRST_HASH
    for number, line in enumerate(lines):
        records.append(_checked(line, number, last_hash))
        last_hash = hashlib.sha256(line).hexdigest()
    size = len(data) - len(tail)
    if not tail:
        return Content(tuple(records), last_hash, size)
    try:
        records.append(_checked(tail, len(lines), last_hash))
    except LedgerError:
        if not _is_torn(tail, len(lines), last_hash):
            raise
        return Content(tuple(records), last_hash, size, torn=len(tail))
    return Content(tuple(records), hashlib.sha256(tail).hexdigest(), len(data), open_ended=True)


def read(path: Path) -> Content:
    """``parse`` of the file at ``path``. Errors: LedgerError if it cannot be read or is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not make us wait
        try:
            return parse(_all_bytes(fd, path))
        finally:
            os.close(fd)
    except OSError as problem:
        raise LedgerError(f"Cannot read the ledger {path.name}: {problem.strerror}.") from problem


class Writer:
    """The one process that may append to a file. Use ``Writer.open``."""

    def __init__(self, fd: int, name: str, content: Content) -> None:
        self._fd = fd
        self._name = name
        self._seq = len(content.records)
        self._last_hash = content.last_hash
        self._size = content.size
        self._pid = os.getpid()

    @classmethod
    def open(cls, path: Path) -> tuple[Writer, Content]:
        """Lock ``path``, made if missing, cut an incomplete last line, and return the content that was found.

        Errors: LedgerError if another process holds the lock, or the file is damaged or cannot be written.
        """
        try:
            # Never through a symbolic link: the file that is locked must be the file that is named.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as problem:
            raise LedgerError(f"Cannot open the ledger {path.name} for writing: {problem.strerror}.") from problem
        try:
            _lock(fd, path)
            content = parse(_all_bytes(fd, path))
            writer = cls(fd, path.name, content)
            writer._repair(content)
            _sync_folder(path.parent)
        except OSError as problem:
            os.close(fd)
            raise LedgerError(f"Cannot prepare the ledger {path.name}: {problem.strerror}.") from problem
        except BaseException:
            os.close(fd)
            raise
        return writer, content

    def append(self, fields: Record) -> Record:
        """Write one record, durably. Errors: LedgerError, and then nothing was written."""
        record = {"seq": self._seq, "prev_sha256": self._last_hash, **fields}
        line = _line(record)
        if len(line) > _LONGEST_LINE:
            raise LedgerError(f"Expected a record of at most {_LONGEST_LINE} bytes, found {len(line)}.")
        self._write(line + b"\n")
        self._seq += 1
        self._last_hash = hashlib.sha256(line).hexdigest()
        return record

    def close(self) -> None:
        """Release the lock. Closing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def closed(self) -> bool:
        """Nothing more can be written: closed on purpose, or after a failed write."""
        return self._fd < 0

    def _repair(self, content: Content) -> None:
        if content.torn:
            os.ftruncate(self._fd, content.size)
            os.fsync(self._fd)
        if content.open_ended:
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            raise LedgerError(f"The ledger {self._name} is closed; open it again to write.")
        if os.getpid() != self._pid:  # a fork shares the lock, and two writers would break the chain
            raise LedgerError(f"The ledger {self._name} belongs to the parent process; only that may write to it.")
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self._size + done)
            os.fsync(self._fd)
        except OSError as problem:
            self._take_back(problem)
        self._size += len(data)

    def _take_back(self, problem: OSError) -> NoReturn:
        # After a failed write or fsync nobody knows what the disk holds: cut it, and stop using this
        # descriptor, since a second fsync may report success for pages that the kernel has already dropped.
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        except OSError:
            pass
        finally:
            self.close()
        full = " Free some space, then open it again." if problem.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise LedgerError(
            f"Could not write to the ledger {self._name}: {problem.strerror}. Nothing was reserved.{full}"
        ) from problem


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise LedgerBusy(
            f"Another process holds the ledger {path.name}. Wait for it to end, or stop it; do not copy it."
        ) from problem
    # The name may have been given to another file between opening and locking.
    if not os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
        raise LedgerError(f"The ledger {path.name} was replaced while it was being opened. Open it again.")


def _all_bytes(fd: int, path: Path) -> bytes:
    size = os.fstat(fd).st_size
    if size > _LARGEST_FILE:
        raise LedgerError(f"The ledger {path.name} has {size} bytes, more than any real one. It is not a ledger.")
    data = bytearray()
    while part := os.pread(fd, 1 << 20, len(data)):
        data += part
    return bytes(data)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checked(line: bytes, seq: int, last_hash: str) -> Record:
    """The record in ``line``, if it is well-formed and continues the chain."""
    record = _object(line, seq)
    if type(record.get("seq")) is not int or record["seq"] != seq or record.get("prev_sha256") != last_hash:
        raise LedgerError(
            f"The chain of the ledger breaks at line {seq + 1}: it does not continue the line before. "
            "Restore the file from a copy; do not edit it."
        )
    return record


def _is_torn(tail: bytes, seq: int, last_hash: str) -> bool:
    """Whether ``tail`` can be what a crash left of our own next line; a file of another kind must not be cut.

    Some file systems extend a file before the data arrive, hence the zeros.
    """
    written = tail.rstrip(b"\0")
    opening = _line({"seq": seq, "prev_sha256": last_hash})[:-1]
    return written.startswith(opening) or opening.startswith(written)


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode()


def _object(line: bytes, seq: int) -> dict[str, Any]:
    try:
        if len(line) > _LONGEST_LINE:
            raise ValueError("too long")
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as problem:
        reason = str(problem)[:80] or type(problem).__name__
        raise LedgerError(f"Line {seq + 1} of the ledger is not a record ({reason}). Restore it from a copy.") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
