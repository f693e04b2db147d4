"""What each library answers: noise for a target, and epsilon (lower, upper) for a noise. One process a library."""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_MEMORY = 10 << 30  # bytes of address space a library may take
_WARM_UP = 300.0  # seconds for imports and the first answer, which are not timed


class Setting(NamedTuple):
    """One row of the grid; ``sigma`` only where epsilon is asked for."""

    q: float
    steps: int
    delta: float
    epsilon: float
    sigma: float = 1.0


@dataclass(frozen=True)
class Answer:
    """Seconds and the value, or the kind of failure."""

    seconds: float
    value: Any = None
    failure: str = ""


class Worker:
    """A process that answers one kind of question, killed and started again when it takes too long."""

    def __init__(self, ask: Callable[[Setting], Any], limit: float) -> None:
        self._ask, self._limit = ask, limit
        self._process: Any = None
        self._pipe: Connection | None = None

    def answer(self, setting: Setting) -> Answer:
        """The library's answer, timed inside of its process."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(setting)
            if self._pipe.poll(self._limit):
                return Answer(*self._pipe.recv())
            failure = "too slow"
        except (EOFError, OSError):
            failure = "died"
        self.stop()
        return Answer(self._limit, failure=failure)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._ask, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_WARM_UP):
            raise TimeoutError("a library did not come up")
        self._pipe.recv()


def _serve(ask: Callable[[Setting], Any], pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    _timed(ask, Setting(0.01, 100, 1e-5, 2.0))
    pipe.send("ready")
    while True:
        try:
            setting = pipe.recv()
        except EOFError:
            return
        pipe.send(_timed(ask, setting))


def _timed(ask: Callable[[Setting], Any], setting: Setting) -> tuple[float, Any, str]:
    start = time.perf_counter()
    try:
        value: Any = ask(setting)
        failure = ""
    except MemoryError:
        value, failure = None, "out of memory"
    except Exception as error:  # whatever a library raises is a failure of its own kind
        value, failure = None, type(error).__name__
    return time.perf_counter() - start, value, failure


# Noise for a target.


def noise_ours(s: Setting) -> float:
    from dpft_accounting import Unit, noise_multiplier

    return noise_multiplier(s.epsilon, s.delta, s.q, s.steps, Unit("example")).value


def noise_opacus_rdp(s: Setting) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    return get_noise_multiplier(
        target_epsilon=s.epsilon, target_delta=s.delta, sample_rate=s.q, steps=s.steps, accountant="rdp"
    )


def noise_opacus_prv(s: Setting) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    return get_noise_multiplier(
        target_epsilon=s.epsilon, target_delta=s.delta, sample_rate=s.q, steps=s.steps, accountant="prv"
    )


def noise_prv(s: Setting) -> float:
    from prv_accountant.dpsgd import find_noise_multiplier

    return float(find_noise_multiplier(s.q, s.steps, s.epsilon, s.delta))


def noise_google_pld(s: Setting) -> float:
    from dp_accounting.pld import PLDAccountant

    return _calibrated(PLDAccountant, s)


def noise_google_rdp(s: Setting) -> float:
    from dp_accounting.rdp import RdpAccountant

    return _calibrated(RdpAccountant, s)


def _calibrated(accountant: Callable[[], Any], s: Setting) -> float:
    from dp_accounting import calibrate_dp_mechanism

    return float(calibrate_dp_mechanism(accountant, lambda sigma: _event(s, sigma), s.epsilon, s.delta))


def _event(s: Setting, sigma: float) -> Any:
    import dp_accounting as library

    one = library.PoissonSampledDpEvent(s.q, library.GaussianDpEvent(sigma))
    return library.SelfComposedDpEvent(one, s.steps)


# Epsilon for a noise: (lower, upper), lower 0 where none is claimed.


def epsilon_ours(s: Setting) -> tuple[float, float]:
    from dpft_accounting import PoissonGaussian, Unit, epsilon

    found = epsilon(PoissonGaussian(s.q, s.sigma, s.steps), Unit("example"), s.delta)
    return found.lower, found.upper


def epsilon_certified(s: Setting) -> tuple[float, float]:
    from dpft_accounting import PoissonGaussian, Unit, certify

    found = certify(PoissonGaussian(s.q, s.sigma, s.steps), Unit("example"), s.delta).bound
    return found.lower, found.upper


def epsilon_opacus_rdp(s: Setting) -> tuple[float, float]:
    from opacus.accountants import RDPAccountant

    return _opacus(RDPAccountant(), s)


def epsilon_opacus_prv(s: Setting) -> tuple[float, float]:
    from opacus.accountants import PRVAccountant

    return _opacus(PRVAccountant(), s)


def epsilon_opacus_gdp(s: Setting) -> tuple[float, float]:
    from opacus.accountants import GaussianAccountant

    return _opacus(GaussianAccountant(), s)


def _opacus(accountant: Any, s: Setting) -> tuple[float, float]:
    accountant.history = [(s.sigma, s.q, s.steps)]
    return 0.0, float(accountant.get_epsilon(delta=s.delta))


def epsilon_prv(s: Setting) -> tuple[float, float]:
    from prv_accountant.dpsgd import DPSGDAccountant

    accountant = DPSGDAccountant(s.sigma, s.q, max_steps=s.steps, eps_error=0.1, delta_error=s.delta / 1000)
    lower, _, upper = accountant.compute_epsilon(s.delta, s.steps)
    return max(0.0, float(lower)), float(upper)


def epsilon_google_pld(s: Setting) -> tuple[float, float]:
    from dp_accounting.pld import PLDAccountant

    return 0.0, float(PLDAccountant().compose(_event(s, s.sigma)).get_epsilon(s.delta))


def epsilon_google_rdp(s: Setting) -> tuple[float, float]:
    from dp_accounting.rdp import RdpAccountant

    return 0.0, float(RdpAccountant().compose(_event(s, s.sigma)).get_epsilon(s.delta))


NOISE: dict[str, Callable[[Setting], float]] = {
    "**dpft**": noise_ours,
    "opacus RDP": noise_opacus_rdp,
    "opacus PRV": noise_opacus_prv,
    "prv-accountant": noise_prv,
    "dp-accounting RDP": noise_google_rdp,
    "dp-accounting PLD": noise_google_pld,
}
EPSILON: dict[str, Callable[[Setting], tuple[float, float]]] = {
    "**dpft, epsilon()**": epsilon_ours,
    "**dpft, certify()**": epsilon_certified,
    "opacus RDP": epsilon_opacus_rdp,
    "opacus PRV": epsilon_opacus_prv,
    "opacus GDP (no guarantee)": epsilon_opacus_gdp,
    "prv-accountant": epsilon_prv,
    "dp-accounting RDP": epsilon_google_rdp,
    "dp-accounting PLD": epsilon_google_pld,
}
