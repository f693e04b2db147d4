"""Hand a trained classifier to people without dpft: its adapter in HF peft's format, or one merged model.

    export(run, to)              adapter_config.json, adapter_model.safetensors, head.safetensors, dpft.json
    export(run, to, merged=True) config.json, model.safetensors, tokenizer, head.safetensors: plain transformers
    export(run, to, pruning=...) the same, with weights set to zero, and masks.safetensors, which says which
    export(run, to, merged=True, int8=True)  the same, with model-int8.safetensors: Linear weights in 8 bits

Each with README.md and, from a run's folder, its privacy.json. Files are taken by name, so nothing under private/
can be among them. Post-processing of what was released already: free of privacy cost.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dpft.adapter import base_source, load
from dpft.errors import InputError
from dpft.files import read_json, sync_folder, write_atomic
from dpft.interop.peft_format import left_out
from dpft.interop.register import PEFT_TYPE
from dpft.models.source import ModelSource, load_encoder, load_tokenizer, quiet, resolve
from dpft.peft.inject import replace_module
from dpft.peft.merge import merge
from dpft.peft.pattern import lost_by_merging
from dpft.peft.prune import Pruning, prune, sparsity
from dpft.peft.pruned import packed
from dpft.peft.registry import METHODS, method_from
from dpft.quantise import loading_int8, save_int8
from dpft.report.write import figure
from dpft.usage import AUTO, usage

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "dpft.json")
UNPROTECTED = "NOT-PRIVATE"  # beside an adapter of which nothing is promised


@dataclass(frozen=True)
class Trained:
    """A finished adapter. ``run`` is its run's folder; None for an adapter that was moved out of one. ``pruned``
    says what of it was set to zero, ``changed`` how else the merged weights differ from the trained ones."""

    adapter: Path
    run: Path | None
    meta: dict[str, Any]
    statement: dict[str, Any] | None
    pruned: str = ""
    changed: tuple[str, ...] = ()

    @property
    def mark(self) -> str | None:
        """What has to stand at the top of whatever is made of it, if it is not private."""
        if self.statement is None or self.statement["private"]:
            return None
        return f"NOT PRIVATE: {self.statement['noise_source']}"


def export(
    folder: Path,
    to: Path,
    *,
    merged: bool = False,
    base: str | None = None,
    pruning: Pruning | None = None,
    keep_pattern: bool = False,
    int8: bool = False,
) -> Trained:
    """Write ``to`` from a finished run's folder, or its ``adapter/``; it is there whole or not at all.

    ``base`` is where the base model lies, if it was a local folder; what is pruned is merged too. Of a merged
    model, ``keep_pattern`` keeps the zeros of a sparse base (see :func:`dpft.peft.merge.merge`) and ``int8`` stores
    Linear weights in 8 bits. Errors: :class:`InputError` for an unfinished run, a ``to`` that is not empty, a base
    model that can't be found, a method without a merged form, zeros that merging would fill, and a pruning that the
    model has no place for."""
    if (keep_pattern or int8) and not merged:
        raise InputError(f"{'--int8' if int8 else '--keep-pattern'} is about a merged model: give --merge too.")
    found = _find(folder)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"Expected --to {to} to be a new or empty folder; choose another.")
    with whole_folder(to) as part:
        if merged or pruning:
            found, readme = _write_merged(found, part, base, pruning, keep_pattern=keep_pattern, int8=int8)
        else:
            readme = _write_adapter(found, part)
        if found.run:
            shutil.copyfile(found.run / "privacy.json", part / "privacy.json")
        write_atomic(part / "README.md", readme.encode())
    return found


def _find(folder: Path) -> Trained:
    inside = folder / "adapter"
    adapter = folder if (folder / "dpft.json").is_file() else inside
    around = adapter.parent
    run = around if (around / "plan.json").exists() and adapter.name == "adapter" else None
    if (run or (folder / "run.toml").exists()) and not (around / "privacy.json").is_file():
        raise InputError(f"The run in {around} is not finished; continue it with dpft run RECIPE --resume.")
    if not (adapter / "dpft.json").is_file():
        raise InputError(f"Expected a finished run's folder, or its adapter/, found neither in {folder}.")
    meta = read_json(adapter / "dpft.json")
    statement = read_json(run / "privacy.json") if run else None
    try:
        method_from(meta["method"])
        _facts(Trained(adapter, run, meta, statement))
        usage(meta, run)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError("dpft.json or privacy.json is damaged: expected them as dpft run writes them.") from None
    return Trained(adapter, run, meta, statement)


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder beside ``to`` that takes its place if all went well, and goes if not."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(part)
        part.chmod(0o755)
        part.rename(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(to.parent)


def _write_adapter(found: Trained, part: Path) -> str:
    headed = () if found.meta.get("task") in AUTO else ("head.safetensors",)
    for name in (*ADAPTER_FILES, *headed):
        if not (found.adapter / name).is_file():
            raise InputError(f"{name} is missing in {found.adapter}; expected an adapter as dpft run writes it.")
        shutil.copyfile(found.adapter / name, part / name)
    if (found.adapter / UNPROTECTED).is_file():
        shutil.copyfile(found.adapter / UNPROTECTED, part / UNPROTECTED)
    return _readme(found, _load_adapter(found, read_json(part / "adapter_config.json")))


def _write_merged(
    found: Trained, part: Path, base: str | None, pruning: Pruning | None, *, keep_pattern: bool, int8: bool
) -> tuple[Trained, str]:
    name = found.meta["method"]["name"]
    if not METHODS[name].merges:
        raise InputError(
            f"The method {name!r} computes what the base model's own layers can't, so it has no merged form"
            + (", which pruning needs." if pruning else "; leave --merge out.")
        )
    if int8 and found.meta.get("task") in AUTO:
        raise InputError("--int8 is for classifiers; of a language model leave it out.")
    source, words = base_source(found.meta, base), usage(found.meta, found.run)
    model = load(found.adapter, base=base)
    if pruning:
        found = replace(found, pruned=_prune(model.encoder, pruning, part))
    if keep_pattern and (lost := lost_by_merging(model)):
        found = replace(found, changed=(_kept_pattern(lost),))
    encoder: Any = merge(model, keep_pattern=keep_pattern).encoder
    if model.trained_in_full:
        for unused in left_out(encoder):  # or transformers would fill its place with random weights, and say so
            replace_module(encoder, unused, load_encoder(source).get_submodule(unused))
        labels = found.meta["labels"] or ["value"]
        encoder.config.id2label = dict(enumerate(labels))
        encoder.config.label2id = {label: i for i, label in enumerate(labels)}
    if int8:
        save_int8(encoder, part)
        found = replace(found, changed=(*found.changed, _INT8))
    else:
        with quiet():
            encoder.save_pretrained(part)
    if words.tokens:
        _write_tokenizer(_tokenizer_source(found.meta, source, base), part)
    if head := {n: p.detach() for n, p in model.head.named_parameters()}:
        write_atomic(part / "head.safetensors", save(head))
    if found.mark:
        write_atomic(part / UNPROTECTED, f"{found.mark}\n".encode())
    code = loading_int8(words.code()) if int8 else words.code()
    return found, _readme(found, f"## Loading\n\n```python\n{code}\n```\n")


_INT8 = (
    "Linear weights in 8 bits, each row with a scale, so an entry is off by at most half of its row's scale; from the "
    "weights alone, which is post-processing and costs no privacy"
)


def _kept_pattern(lost: dict[str, float]) -> str:
    worst = max(lost, key=lost.__getitem__)
    return (
        f"the base's zeros were kept in {len(lost)} layers, so this model is not the one that was trained: without "
        f"what was dropped a layer's weight differs by up to {lost[worst]:.2%} of its norm "
        f"({worst.removeprefix('encoder.')})"
    )


def _tokenizer_source(meta: dict[str, Any], source: ModelSource, base: str | None) -> ModelSource:
    """The base model's own tokenizer, or the one that the recipe named; a local one lies at ``base`` too."""
    named = meta.get("tokenizer")
    if named is None:
        return source
    if base is None and str(named).startswith("folder:"):
        raise InputError(
            f"The tokenizer came from the local folder {str(named).removeprefix('folder:')!r}, whose path is not "
            "recorded; give it: --base."
        )
    return resolve(base if str(named).startswith("folder:") and base else str(named))


def _write_tokenizer(source: ModelSource, part: Path) -> None:
    tokenizer = load_tokenizer(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which one is behind the mask does not matter
    with quiet():
        tokenizer.save_pretrained(part)


def _prune(encoder: Any, pruning: Pruning, part: Path) -> str:
    """Fold and prune ``encoder``, write the masks, and say what was done."""
    masks = prune(encoder, pruning.ratio, heads=pruning.heads, scope=pruning.scope)
    write_atomic(part / "masks.safetensors", save({f"{name}.weight": packed(m) for name, m in masks.items()}))
    zeros, of = sparsity(masks)
    how = f"{pruning.heads} heads of each attention, " if pruning.heads else ""
    return (
        f"{how}{zeros:,} of the {of:,} weights of the blocks' Linear layers are exactly zero ({zeros / of:.1%}); "
        "found from the trained values alone, which is post-processing and costs no privacy. "
        "masks.safetensors has them, eight weights a byte (numpy.unpackbits; 1 = kept)"
    )


def _readme(found: Trained, loading: str) -> str:
    mark = f"**{found.mark}. Nothing is promised to the people behind the training records.**\n\n" if found.mark else ""
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(found))
    name = found.meta["base"].partition(":")[2] or found.meta["base"]
    words = usage(found.meta, found.run)
    return f"# {words.what} on {name}\n\n{mark}| | |\n|---|---|\n{facts}\n\n{loading}{words.inputs()}"


def _facts(found: Trained) -> list[tuple[str, str]]:
    meta, made = found.meta, found.statement
    fields = ", ".join(f"{k} = {v}" for k, v in meta["method"].items() if k != "name")
    at = f" at {meta['revision']}" if meta["revision"] else ""
    facts = [
        ("method", meta["method"]["name"] + (f" ({fields})" if fields else "")),
        ("base model", meta["base"] + at),
        *([("labels", ", ".join(meta["labels"]))] if meta["labels"] else []),
        ("task", meta.get("task", "classification")),
        *([("pruned", found.pruned)] if found.pruned else []),
        *(("weights", change) for change in found.changed),
    ]
    if made is None:
        return [*facts, ("privacy", "no statement was beside the adapter: ask whoever trained it for privacy.json")]
    epsilon = figure(made["epsilon"]["upper"])
    guarantee = f"epsilon {epsilon} at delta {made['delta']:g}, for each {made['unit']}: {made['adjacency_in_words']}"
    return [
        *facts,
        ("privacy", f"{found.mark}; {guarantee}" if found.mark else guarantee),
        ("not covered", "; ".join(made["not_covered"])),
        ("trained on", made["dataset"]),
    ]


def _load_adapter(found: Trained, config: dict[str, Any]) -> str:
    ours = "import dpft  # makes the method known to peft\n" if config.get("peft_type") == PEFT_TYPE else ""
    base, revision = found.meta["base"], found.meta["revision"]
    if "drawn" in found.meta:
        return _DRAWN
    _, local, name = base.partition(":")
    where = f'"path/to/{name}"' if local else f'"{base}"' + (f', revision="{revision}"' if revision else "")
    auto = AUTO.get(found.meta.get("task", ""), "AutoModel")
    whole = "Model and adapter" if auto != "AutoModel" else "Encoder, pooling and head as one classifier"
    return f"""## Loading

```python
{ours}from peft import PeftModel
from transformers import {auto}

encoder = PeftModel.from_pretrained({auto}.from_pretrained({where}), "path/to/this/folder").eval()
```

{whole}: `dpft.load("path/to/this/folder")`, with `base="path/to/model"` where
the base model is a local folder.
"""


_DRAWN = """## Loading

`dpft.load("path/to/this/folder")`: the model had no pretrained weights, and its configuration and the seed of its
initial weights stand in dpft.json. For transformers without dpft, export the run with `--merge`.
"""
