"""Privacy accounting for differentially private training: mechanisms, ε and δ, calibration, ledger.

Needs numpy, scipy, dp-accounting and prv-accountant, loaded on first use; never torch.
"""

from .accountants import delta, epsilon
from .audit import Audit, gradient_canary
from .audit_one_run import one_run
from .bound import Bound
from .budget import Budget
from .calibrate import Calibration, calibrate, max_sample_rate, max_steps, noise_multiplier
from .certify import Certificate, certify
from .errors import AccountantsDisagree, AccountingError, BudgetExceeded, LedgerBusy, LedgerError, Unsupported
from .ledger import Ledger
from .ledger_report import LedgerReport, RunRow
from .ledger_run import LedgerRun
from .mechanisms import (
    BandedMF,
    EpsDelta,
    Gaussian,
    Mechanism,
    Parallel,
    PoissonGaussian,
    Select,
    Sequential,
    ShuffledGaussian,
    TruncatedPoissonGaussian,
    UserELS,
    mechanism_from_dict,
)
from .profile import Profile, profile
from .replay import RunRecord
from .risk import Risk
from .spending import Room
from .tuning import NoisyCount, TuningPlan, Winner, plan_tuning, run_tuning
from .units import Unit, check_delta
from .verify import Verification, verify
from .versions import __version__

__all__ = [
    "AccountantsDisagree",
    "AccountingError",
    "Audit",
    "BandedMF",
    "Bound",
    "Budget",
    "BudgetExceeded",
    "Calibration",
    "Certificate",
    "EpsDelta",
    "Gaussian",
    "Ledger",
    "LedgerBusy",
    "LedgerError",
    "LedgerReport",
    "LedgerRun",
    "Mechanism",
    "NoisyCount",
    "Parallel",
    "PoissonGaussian",
    "Profile",
    "Risk",
    "Room",
    "RunRecord",
    "RunRow",
    "Select",
    "Sequential",
    "ShuffledGaussian",
    "TruncatedPoissonGaussian",
    "TuningPlan",
    "Unit",
    "Unsupported",
    "UserELS",
    "Verification",
    "Winner",
    "__version__",
    "calibrate",
    "certify",
    "check_delta",
    "delta",
    "epsilon",
    "gradient_canary",
    "max_sample_rate",
    "max_steps",
    "mechanism_from_dict",
    "noise_multiplier",
    "one_run",
    "plan_tuning",
    "profile",
    "run_tuning",
    "verify",
]
