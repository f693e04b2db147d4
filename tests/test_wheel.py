"""The wheel that a stranger installs: both packages, typed, working from outside of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment that holds the wheel and, behind it, this one's libraries."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
         str(wheel)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # A path line, not a site folder: this environment's own .pth files, one of which leads to the repository,
    # are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def outside(command: list[Any], tmp_path: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"dpft", "dpft_accounting"}
    assert {"dpft/py.typed", "dpft_accounting/py.typed"} <= set(names)
    for package, folder in (("dpft", ROOT / "dpft"), ("dpft_accounting", ROOT / "accounting" / "dpft_accounting")):
        sources = {f"{package}/{p.relative_to(folder)}" for p in folder.rglob("*.py")}
        assert sources <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_it_is_imported_from_where_it_was_installed(installed: Path, tmp_path: Path) -> None:
    code = "import dpft, dpft_accounting, dpft.cli; print(dpft.__file__); print(dpft_accounting.__file__)"
    for line in outside([installed, "-c", code], tmp_path).splitlines():
        assert Path(line).is_relative_to(installed.parents[1])
        assert not Path(line).is_relative_to(ROOT)


def test_its_command_plans(installed: Path, tmp_path: Path) -> None:
    command = installed.parent / "dpft"
    assert "plan" in outside([command, "--help"], tmp_path)
    options = ["--delta", "1e-6", "--examples", "1000", "--batch", "10", "--epochs", "1", "--epsilon", "3", "--json"]
    assert json.loads(outside([command, "plan", *options], tmp_path))["epsilon"]["upper"] <= 3 * (1 + 1e-6)


def closure(*names: str) -> set[str]:
    """The distributions that ``names`` need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(text) for text in distribution(name).requires or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel and what accounting says it needs; no torch anywhere."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    zipfile.ZipFile(wheel).extractall(site)
    needed = closure("numpy", "scipy", "dp-accounting", "prv-accountant")
    assert not needed & {"torch", "transformers", "opacus"}
    for name in needed:
        for top in {
            file.parts[0] for file in distribution(name).files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return python


def test_the_accounting_works_where_there_is_no_torch(bare: Path, tmp_path: Path) -> None:
    code = """
import importlib.util
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("pydantic") is None
from dpft_accounting import *
unit = Unit("example")
noise = noise_multiplier(3, 1e-6, 0.01, 200, unit)
found = certify(PoissonGaussian(0.01, noise.value, 200), unit, 1e-6)
with Ledger.open("ledger.jsonl", "d", unit, Budget(3, 1e-6)) as ledger, ledger.run("a", found.mechanism) as run:
    run.reserve(200)
    print(found.bound.method, profile(found.mechanism, unit).tpr(0.01) < 0.5, verify("ledger.jsonl").records)
"""
    assert outside([bare, "-W", "error", "-c", code], tmp_path).split() == ["pld", "True", "3"]
