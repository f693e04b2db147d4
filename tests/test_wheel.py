"""The wheel that a stranger installs: both packages, typed, working from outside of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

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
