"""One member of a tar.gz, read in memory. Nothing is ever extracted to a path that an archive names."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

from dpft.errors import InputError

MAX_UNPACKED = 64 * 2**20
"""Bytes that an archive may unpack to."""


def read_member(archive: bytes, name: str) -> bytes:
    """The content of the one regular file called exactly ``name``.

    Links, devices and folders of that name don't count; neither do other spellings of the path.
    InputError if the archive is damaged or unpacks to more than ``MAX_UNPACKED``, or if there is not
    exactly one such file.
    """
    found = _members(_unpacked(archive), name)
    if found is None or len(found) != 1:
        raise InputError(f"Expected an archive with one regular file {name}; fetch the archive again.")
    return found[0]


def _unpacked(archive: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(archive)) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error):
        content = b""
    if not content or len(content) > MAX_UNPACKED:
        raise InputError(f"Expected a gzip archive of at most {MAX_UNPACKED} bytes; fetch the archive again.")
    return content


def _members(tar: bytes, name: str) -> list[bytes] | None:
    found: list[bytes] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as file:
            for member in file:
                stream = file.extractfile(member) if member.isreg() and member.name == name else None
                if stream is not None:
                    found.append(stream.read())
    except (tarfile.TarError, OSError, ValueError):  # ValueError: nonsense numbers in a header
        return None
    return found
