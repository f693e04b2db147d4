"""What can go wrong in privacy accounting, each with the exit code of a command that meets it.

Exit code 2 means that the request was wrong or not supported; 3 means that a privacy rule stopped the work.
"""

from __future__ import annotations


class AccountingError(Exception):
    """A value that the accounting cannot accept, or the base of the more specific errors."""

    exit_code = 2


class Unsupported(AccountingError):  # noqa: N818 - reads as a sentence where it is raised
    """A combination of mechanism, unit and accountant without a sound answer; names those that have one."""


class AccountantsDisagree(AccountingError):  # noqa: N818
    """Two sound accountants contradict each other, so that no number can be trusted."""

    exit_code = 3


class BudgetExceeded(AccountingError):  # noqa: N818
    """The next steps would go past the plan or the privacy budget; nothing was charged."""

    exit_code = 3


class LedgerError(AccountingError):
    """The ledger is broken, locked, full, or belongs to something else; nothing was charged."""

    exit_code = 3


class LedgerBusy(LedgerError):  # noqa: N818
    """Another process is writing to the ledger; waiting helps."""
