"""What each library answers, each in a process of its own with a limit on time and memory.

Two questions: the noise for a target (``NOISE``), and epsilon for a noise (``EPSILON``). A library is called as its
documentation says, on its defaults; Gaussian without sampling where q = 1 and it has a call for that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_MEMORY = 8 << 30  # bytes of address space a library may take
_WARM_UP = 300.0  # seconds for imports and the first answer, which are not timed
# Loaded once by the process that workers are forked from: one that was killed is replaced at once.
_LIBRARIES = ["dpft_accounting.prv", "dpft_accounting.pld", "scipy.integrate", "scipy.optimize", "opacus.accountants",
              "opacus.accountants.utils", "prv_accountant.dpsgd", "dp_accounting", "dp_accounting.pld",
              "dp_accounting.rdp"]  # fmt: skip


class Setting(NamedTuple):
    """``epsilon`` is the target, or where ``sigma`` is given about what to expect; ``adjacency`` as in dpft."""

    q: float
    steps: int
    delta: float
    epsilon: float
    sigma: float = 1.0
    adjacency: str = "add_remove"


class Answer(NamedTuple):
    """Seconds and the value, or the kind of failure with no value."""

    seconds: float
    value: Any = None
    failure: str = ""


Ask = Callable[[Setting], Any]


class Worker:
    """A process that answers one question, killed and started again when it takes too long.

    ``first`` is asked once before anything is timed: the library's epsilon, one evaluation, is the cheap one.
    """

    def __init__(self, ask: Ask, limit: float, first: Ask) -> None:
        self._ask, self._limit, self._first = ask, limit, first
        self._process: Any = None
        self._pipe: Connection | None = None

    def answer(self, setting: Setting) -> Answer:
        """The library's answer, timed inside of its process; a failure is an answer too."""
        try:
            if self._process is None:
                self._start()
            assert self._pipe is not None
            self._pipe.send(setting)
            if self._pipe.poll(self._limit):
                return Answer(*self._pipe.recv())
            failure = f"over {self._limit:g} s"
        except (EOFError, OSError):  # TimeoutError of the start included
            failure = "died"
        self.stop()
        return Answer(self._limit, failure=failure)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_LIBRARIES)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._ask, self._first, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_WARM_UP):
            raise TimeoutError
        self._pipe.recv()


def _serve(ask: Ask, first: Ask, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        _timed(first, Setting(0.01, 100, 1e-5, 2.0))
        pipe.send("ready")
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while True:
                pipe.send(_timed(ask, pipe.recv()))


def _timed(ask: Ask, setting: Setting) -> tuple[float, Any, str]:
    start = time.perf_counter()
    value, failure = None, ""
    try:
        value = ask(setting)
    except MemoryError:
        failure = "out of memory"
    except Exception as error:  # whatever a library raises is a failure of its own kind
        failure = type(error).__name__
    seconds = time.perf_counter() - start
    if not failure and not all(math.isfinite(number) for number in (value if isinstance(value, tuple) else (value,))):
        value, failure = None, "not finite"
    return seconds, value, failure


# Noise for a target.


def noise_ours(s: Setting) -> float:
    from dpft_accounting import Unit, noise_multiplier

    return noise_multiplier(s.epsilon, s.delta, s.q, s.steps, Unit("example")).value


def noise_opacus_prv(s: Setting) -> float:
    return _noise_opacus(s, "prv")


def noise_opacus_rdp(s: Setting) -> float:
    return _noise_opacus(s, "rdp")


def _noise_opacus(s: Setting, accountant: str) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    target = {"target_epsilon": s.epsilon, "target_delta": s.delta}
    return float(get_noise_multiplier(**target, sample_rate=s.q, steps=s.steps, accountant=accountant))


def noise_prv(s: Setting) -> float:
    from prv_accountant.dpsgd import find_noise_multiplier

    return float(find_noise_multiplier(s.q, s.steps, s.epsilon, s.delta))


def noise_google_pld(s: Setting) -> float:
    from dp_accounting.pld import PLDAccountant

    return _noise_google(PLDAccountant, s)


def noise_google_rdp(s: Setting) -> float:
    from dp_accounting.rdp import RdpAccountant

    return _noise_google(RdpAccountant, s)


def _noise_google(accountant: Callable[[], Any], s: Setting) -> float:
    from dp_accounting import calibrate_dp_mechanism

    return float(calibrate_dp_mechanism(accountant, lambda sigma: _event(s, sigma), s.epsilon, s.delta))


def _event(s: Setting, sigma: float) -> Any:
    import dp_accounting as library

    one: Any = library.GaussianDpEvent(sigma)
    return library.SelfComposedDpEvent(one if s.q == 1 else library.PoissonSampledDpEvent(s.q, one), s.steps)


# Epsilon for a noise: (lower, upper), lower 0 where none is claimed.


def epsilon_ours(s: Setting) -> tuple[float, float]:
    from dpft_accounting import PoissonGaussian, Unit, epsilon

    found = epsilon(PoissonGaussian(s.q, s.sigma, s.steps), Unit("example"), s.delta)
    return found.lower, found.upper


def epsilon_certified(s: Setting) -> tuple[float, float]:
    from dpft_accounting import PoissonGaussian, Unit, certify

    unit = Unit("example") if s.adjacency == "add_remove" else Unit("example", "replace", 1000)
    found = certify(PoissonGaussian(s.q, s.sigma, s.steps), unit, s.delta).bound
    return found.lower, found.upper


def epsilon_opacus_prv(s: Setting) -> tuple[float, float]:
    from opacus.accountants import PRVAccountant

    return _opacus(PRVAccountant(), s)


def epsilon_opacus_rdp(s: Setting) -> tuple[float, float]:
    from opacus.accountants import RDPAccountant

    return _opacus(RDPAccountant(), s)


def epsilon_opacus_gdp(s: Setting) -> tuple[float, float]:
    from opacus.accountants import GaussianAccountant

    return _opacus(GaussianAccountant(), s)


def _opacus(accountant: Any, s: Setting) -> tuple[float, float]:
    accountant.history = [(s.sigma, s.q, s.steps)]
    return 0.0, float(accountant.get_epsilon(delta=s.delta))


def epsilon_prv(s: Setting) -> tuple[float, float]:
    """With the library's advice for the error in delta, and 1 % of the epsilon to be expected as error in that."""
    from prv_accountant import GaussianMechanism, PoissonSubsampledGaussianMechanism, PRVAccountant

    loss = GaussianMechanism(s.sigma) if s.q == 1 else PoissonSubsampledGaussianMechanism(s.q, s.sigma)
    errors = {"eps_error": 0.01 * s.epsilon, "delta_error": s.delta / 1000}
    accountant = PRVAccountant(prvs=loss, max_self_compositions=s.steps, **errors)
    lower, _, upper = accountant.compute_epsilon(s.delta, s.steps)
    return max(0.0, float(lower)), float(upper)


def epsilon_google_pld(s: Setting) -> tuple[float, float]:
    from dp_accounting.pld import PLDAccountant

    return 0.0, float(PLDAccountant().compose(_event(s, s.sigma)).get_epsilon(s.delta))


def epsilon_google_rdp(s: Setting) -> tuple[float, float]:
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    replace = s.adjacency == "replace"
    relation = NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = RdpAccountant(neighboring_relation=relation)
    return 0.0, float(accountant.compose(_event(s, s.sigma)).get_epsilon(s.delta))


OURS, CERTIFIED = "**dpft**", "**dpft, certified**"
NOISE: dict[str, Ask] = {
    OURS: noise_ours,
    "Opacus PRV": noise_opacus_prv,
    "Opacus RDP": noise_opacus_rdp,
    "prv-accountant": noise_prv,
    "dp-accounting PLD": noise_google_pld,
    "dp-accounting RDP": noise_google_rdp,
}
EPSILON: dict[str, Ask] = {
    OURS: epsilon_ours,
    CERTIFIED: epsilon_certified,
    "Opacus PRV": epsilon_opacus_prv,
    "Opacus RDP": epsilon_opacus_rdp,
    "Opacus GDP (no guarantee)": epsilon_opacus_gdp,
    "prv-accountant": epsilon_prv,
    "dp-accounting PLD": epsilon_google_pld,
    "dp-accounting RDP": epsilon_google_rdp,
}
