"""Privacy accounting for differentially private training: mechanisms, ε and δ, calibration, ledger.

Needs numpy, scipy, dp-accounting and prv-accountant, loaded on first use; never torch.
"""

from .accountants import delta, epsilon
from .bound import Bound
from .budget import Budget
from .calibrate import Calibration, max_steps, noise_multiplier
from .certify import Certificate, certify
from .errors import AccountantsDisagree, AccountingError, BudgetExceeded, LedgerError, Unsupported
from .ledger import Ledger
from .ledger_run import LedgerRun
from .mechanisms import Gaussian, Mechanism, PoissonGaussian, mechanism_from_dict
from .replay import RunRecord
from .units import Unit, check_delta
from .verify import Verification, verify
from .versions import __version__

__all__ = [
    "AccountantsDisagree",
    "AccountingError",
    "Bound",
    "Budget",
    "BudgetExceeded",
    "Calibration",
    "Certificate",
    "Gaussian",
    "Ledger",
    "LedgerError",
    "LedgerRun",
    "Mechanism",
    "PoissonGaussian",
    "RunRecord",
    "Unit",
    "Unsupported",
    "Verification",
    "__version__",
    "certify",
    "check_delta",
    "delta",
    "epsilon",
    "max_steps",
    "mechanism_from_dict",
    "noise_multiplier",
    "verify",
]
