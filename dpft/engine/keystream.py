"""Where randomness comes from: an AES-256-CTR keystream keyed by the operating system.

torch, numpy and ``random`` take user seeds, are saved in checkpoints, and are read by everything else in
the process; whoever knows such a state can subtract the noise. This stream has a key of its own that is
never stored, so no seed and no file gives the noise back (and a resumed run draws fresh noise).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

_BITS_53 = (1 << 53) - 1
PIECE = 1 << 17
"""Normals made at a time, an even number: few enough to stay in the processor's cache."""


class Words(Protocol):
    """A source of uniform 64-bit words. ``private`` is False for anything that can be replayed."""

    name: str
    private: bool

    def words(self, n: int) -> Tensor:
        """[n] int64, all 2^64 values equally likely."""
        ...


class Keystream:
    """The secure source. 256 key bits and the counter's start come from ``os.urandom``.

    A forked child takes a new key at its first use, so no two processes share noise."""

    name = "AES-256-CTR keyed by the operating system"
    private = True

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._pid = os.getpid()
        self._cipher = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def words(self, n: int) -> Tensor:
        if self._pid != os.getpid():
            self._rekey()
        return torch.frombuffer(bytearray(self._cipher.update(bytes(8 * n))), dtype=torch.int64) if n else _none()

    def __reduce__(self) -> tuple[type[Keystream], tuple[()]]:
        return Keystream, ()  # a copy has a key of its own: the same noise is never drawn twice


class InsecureSeededWords:
    """FOR TESTS ONLY: a replayable source. Every artefact of a run that used it says NOT PRIVATE."""

    name = "INSECURE seeded generator: NOT PRIVATE"
    private = False

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def words(self, n: int) -> Tensor:
        low = -(1 << 63)
        return torch.randint(low, -low - 1, (n,), generator=self._generator) if n else _none()


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def uniform(source: Words, n: int) -> Tensor:
    """[n] float64 in (0, 1], on the grid of 2^-53."""
    return source.words(n).bitwise_and_(_BITS_53).double().add_(1.0).mul_(2.0**-53)


def normals(source: Words, n: int) -> Iterator[Tensor]:
    """``n`` numbers N(0, 1), float64, by Box-Muller from 53-bit uniforms: :data:`PIECE` at a time, each piece drawn as
    it is asked for.

    Values beyond 8.57 can't occur; a true normal exceeds that with probability 1e-17. The time taken does
    not depend on the values (no rejection)."""
    for start in range(0, n, PIECE):
        size = min(PIECE, n - start)
        half = (size + 1) // 2
        u = uniform(source, 2 * half)
        radius = u[:half].log_().mul_(-2.0).sqrt_()
        angle = u[half:].mul_(2.0 * math.pi)
        piece = torch.empty(2 * half, dtype=torch.float64)
        torch.cos(angle, out=piece[:half]).mul_(radius)
        torch.sin(angle, out=piece[half:]).mul_(radius)
        yield piece[:size]
