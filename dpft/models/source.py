"""Where pretrained weights come from: a Hub name, a local folder, or an installed package that carries them."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from dpft.errors import InputError
from dpft.models.drawn import START, Drawn, read_config
from dpft.models.package import package_weights

Kind = Literal["masked-lm", "causal-lm", "seq2seq"]
_AUTO: dict[Kind, str] = {
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model and how to name it in public.

    ``location`` is what transformers loads (a Hub name or a folder); ``public_name`` never holds a path."""

    location: str
    public_name: str
    revision: str | None = None
    drawn: Drawn | None = None  # in place of weights
    gguf: str | None = None  # the file in ``location`` that holds weights, configuration and tokenizer

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
        folder, gguf = package_weights(source.removeprefix("package:"))
        return ModelSource(str(folder), source, gguf=gguf)
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"model.source={source!r} is a folder without config.json; expected a saved HF model.")
        return ModelSource(str(folder), f"folder:{folder.resolve().name}")
    if source.startswith((".", "/", "~")):
        raise InputError(f"model.source={source!r} is not a folder; give a saved model's folder or a Hub name.")
    return ModelSource(source, source, revision)


def load_encoder(source: ModelSource, attention: str | None = None) -> Any:
    """The encoder (no task head), float32, in eval mode. Only safetensors; never code from the repository.

    ``attention`` asks for an implementation ("eager"); None leaves the choice to transformers."""
    if source.drawn is not None:
        return source.drawn.build(attention)
    from transformers import AutoModel

    options = {"attn_implementation": attention} if attention else {}
    return _load(AutoModel, source, use_safetensors=True, dtype="float32", **options).eval()


def load_language_model(source: ModelSource, kind: Kind, attention: str | None = None) -> Any:
    """The same with the head that predicts tokens."""
    import transformers

    if source.drawn is not None:
        return source.drawn.build(attention, _AUTO[kind])
    options = {"attn_implementation": attention} if attention else {}
    auto = getattr(transformers, _AUTO[kind])
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
    if source.gguf is not None:
        options["gguf_file"] = source.gguf
        if importlib.util.find_spec("gguf") is None:
            raise InputError(
                f'The weights of {source.public_name!r} need the package gguf: pip install "dpft[language]".'
            )
    bars = io.StringIO()  # of transformers' reader of GGUF files, which can't be turned off otherwise
    try:
        with quiet(), redirect_stderr(bars) if source.gguf else nullcontext():
            return auto.from_pretrained(
                source.location, revision=source.revision or "main", trust_remote_code=False, **options
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Can't load model.source={source.public_name!r}: {first} Check the name, the connection to the hub, "
            "or give a local folder with config.json and model.safetensors."
        ) from error
