"""The package as a whole: light to import, no torch, examples that run."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import dpft_accounting
from dpft_accounting import AccountingError

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_importing_loads_neither_torch_nor_the_heavy_libraries() -> None:
    code = "import sys, dpft_accounting; print(*sys.modules)"
    loaded = set(run_python(code).split())
    assert "dpft_accounting" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "scipy", "dp_accounting", "prv_accountant"})


def test_accounting_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from dpft_accounting import *\n"
        "found = certify(PoissonGaussian(0.01, 0.8, 10), Unit('example'), 1e-6)\n"
        "print(found.bound.method, 'torch' in sys.modules)"
    )
    assert run_python(code).split() == ["pld", "False"]


def test_every_exported_name_exists() -> None:
    assert all(hasattr(dpft_accounting, name) for name in dpft_accounting.__all__)
    assert list(dpft_accounting.__all__) == sorted(dpft_accounting.__all__)


def test_every_error_is_an_accounting_error_with_an_exit_code() -> None:
    errors = [value for value in vars(dpft_accounting).values() if isinstance(value, type)]
    codes = {error.__name__: error.exit_code for error in errors if issubclass(error, AccountingError)}
    assert codes == {
        "AccountingError": 2,
        "Unsupported": 2,
        "AccountantsDisagree": 3,
        "BudgetExceeded": 3,
        "LedgerBusy": 3,
        "LedgerError": 3,
    }


def test_the_examples_of_the_readme_are_true() -> None:
    readme = ROOT / "accounting" / "README.md"
    found = doctest.testfile(
        str(readme), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert found.attempted > 10
    assert found.failed == 0


def test_the_readme_lists_every_module() -> None:
    package = ROOT / "accounting" / "dpft_accounting"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    text = (ROOT / "accounting" / "README.md").read_text()
    assert {name for name in modules if f"\n{name} " not in text} == set()
