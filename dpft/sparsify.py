"""Prune a pretrained model once, on public text, for all that is trained on it afterwards (arXiv 2111.05754).

    s_t = s (1 - (1 - t/t1)^3)      share of each block Linear that is zero at step t, fixed from t1 on

Every few steps each layer's smallest entries become zero: those not strictly above the threshold, so ties go too. In
between the blocks train to compute what the dense model does (models/distil.py); the learning rate falls to zero at t1
and starts anew there. Embeddings and heads stay as they are: a public text that fits here has few of the words that
they know, which is where this departs from the paper, and so does training without dropout.

NOT PRIVATE: no clipping, no noise, no ledger. Whoever calls this declares the text public; a model that was pruned on
private text gives it away, and so does all that is trained on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpft.data.origin import Origin, file_parts
from dpft.declared import ORIGINS, SPARSITY, origins_of_model
from dpft.errors import InputError, PrivacyError
from dpft.export import whole_folder
from dpft.files import write_json
from dpft.models.distil import Batch, DistilLoss, Objective, Vocabulary, causal_loss, hidden_states_loss, masked_loss
from dpft.models.precision import attention_for, compute_dtype, products_in
from dpft.models.source import ModelSource, load_encoder, load_language_model, load_tokenizer, quiet, resolve
from dpft.peft.families import blocks_of, family_of
from dpft.peft.inject import ALL_LINEAR, linears
from dpft.peft.pattern import sparsity
from dpft.schedule import factor


@dataclass(frozen=True)
class Pruning:
    """``sparsity``: the share of zeros in the end; ``steps`` in all, of which pruning ends at ``until``, ``every`` so
    many (0: half of them, and a hundredth); ``batch`` windows of ``length`` tokens; ``lr`` and ``decay`` of AdamW."""

    sparsity: float = 0.85
    steps: int = 1000
    until: int = 0
    every: int = 0
    batch: int = 32
    length: int = 64
    lr: float = 1e-4
    decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.05 <= self.sparsity < 1:
            raise InputError(f"Expected sparsity={self.sparsity} to be at least 0.05 and below 1.")
        for name, least in (("steps", 2), ("until", 0), ("every", 0), ("batch", 1), ("length", 8)):
            if getattr(self, name) < least:
                raise InputError(f"Expected {name}={getattr(self, name)} to be at least {least}.")
        if self.until > self.steps:
            raise InputError(f"Expected until={self.until} to be at most steps={self.steps}.")
        if not (0 < self.lr < math.inf and 0 <= self.decay < math.inf):
            raise InputError(f"Expected lr={self.lr} above 0 and decay={self.decay} at least 0, both finite.")

    @property
    def last(self) -> int:
        """t1, the step at which the last entries are pruned."""
        return self.until or self.steps // 2

    @property
    def pace(self) -> int:
        return self.every or max(1, self.steps // 100)

    def share(self, step: int) -> float:
        """s_t, after ``step`` of the steps."""
        return self.sparsity * (1 - (1 - min(step, self.last) / self.last) ** 3)

    def rate(self, step: int) -> float:
        """The learning rate of 0-based ``step``: down to zero until t1, and once more from there."""
        if step < self.last:
            return self.lr * factor("linear", step, self.last, 0.0)
        return self.lr * factor("linear", step - self.last, self.steps - self.last, 0.0)


def mask_of(weight: Tensor, share: float) -> Tensor:
    """What stays of ``weight``: entries strictly above the smallest ``share`` of them. At least so many go, more where
    entries of equal size stand at the threshold."""
    count = round(share * weight.numel())
    if count == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    size = weight.detach().abs().flatten().float()
    return (size > size.kthvalue(count).values).view_as(weight)


def prune_gradually(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    loss: DistilLoss,
    pruning: Pruning,
    *,
    public: bool,
    say: Callable[[int, float, float], None] = lambda _step, _share, _loss: None,
) -> None:
    """Prune the Linear weights of ``student``'s blocks in place, one step a batch; the blocks train, nothing else does.

    ``say`` hears the step, the share of zeros and the loss. Raises :class:`PrivacyError` unless ``public=True``
    declares every batch public, and :class:`InputError` for a model of no known family."""
    _declared(public)
    weights = [m.get_parameter("weight") for _, m in linears(student, (ALL_LINEAR,))]
    student.requires_grad_(False)
    trained = [p for stack in blocks_of(student) for _, block in stack for p in block.parameters()]
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=pruning.lr, weight_decay=pruning.decay)
    masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    device = trained[0].device
    compute = compute_dtype("auto", device) if trained[0].dtype == torch.float32 else torch.float32
    for step, batch in zip(range(pruning.steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = pruning.rate(step)
        with products_in(compute, device):
            value = loss(student, teacher, batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done = step + 1
        with torch.no_grad():
            if done == pruning.last or (done < pruning.last and done % pruning.pace == 0):
                masks = [mask_of(w * mask, pruning.share(done)) for w, mask in zip(weights, masks, strict=True)]
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)  # momentum and decay move what was pruned too
        say(done, pruning.share(done), float(value.detach()))


def sparsify(
    model: str,
    to: Path,
    text: Path,
    pruning: Pruning,
    *,
    public: bool,
    distil: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make a sparse copy of ``model`` (as ``model.source`` in a recipe names one) in the new folder ``to``, and return
    what its sparsity.json says, the text's hash included: a run on that file as private is refused
    (``dpft/declared.py``).

    Errors: :class:`PrivacyError` unless the text is declared public; :class:`InputError` for a text that can't be read
    or is too short, a folder in use, and a model whose weights or kind are not those of a text encoder or decoder."""
    _declared(public)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"Expected --to {to} to be a new or empty folder; choose another.")
    content, source = _read(text), resolve(model)
    origins = [*origins_of_model(Path(source.location)), Origin(f"text:{text.name}", file_parts([text]))]
    tokenizer = load_tokenizer(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective, teacher = _load(source, tokenizer, device)
    if objective == "hidden-states" and not distil:
        raise InputError(
            f"{source.public_name} was saved without a language-model head, so the dense model's hidden states are all "
            "it can learn from: leave --no-distil out."
        )
    _, student = _load(source, tokenizer, device)
    room = getattr(student.config, "max_position_embeddings", None)
    if room is not None and pruning.length > room:
        raise InputError(f"Expected --length {pruning.length} to be at most {room}, the model's positions; lower it.")
    windows = _windows(tokenizer, content, pruning.length)
    say(f"{len(windows)} windows of up to {pruning.length} tokens; what is learnt: {objective}")
    loss, said = _loss(objective, tokenizer, teacher, pruning.seed, distil=distil), max(1, pruning.steps // 20)
    heard: list[float] = []

    def listen(step: int, share: float, value: float) -> None:
        heard.append(value)
        if step % said == 0 or step == pruning.steps:
            say(f"step {step} of {pruning.steps}: {share:.1%} zeros, loss {value:.4f}")

    batches = _batches(windows, tokenizer, pruning, device)
    prune_gradually(student.to(device), teacher.to(device), batches, loss, pruning, public=public, say=listen)
    found = {name: m.get_parameter("weight") for name, m in linears(student, (ALL_LINEAR,))}
    zeros = sum(int((w == 0).sum()) for w in found.values())
    facts = {
        "model": source.public_name,
        "sparsity": zeros / sum(w.numel() for w in found.values()),
        "layers": {f"{name}.weight": round(sparsity(w), 6) for name, w in found.items()},
        "objective": objective + (", distilled" if distil else ""),
        "pruning": asdict(pruning) | {"until": pruning.last, "every": pruning.pace},
        "windows": len(windows),
        ORIGINS: [origin.to_dict() for origin in origins],
        "last_loss": round(heard[-1], 6),
    }
    with whole_folder(to) as part, quiet():
        student.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_json(part / SPARSITY, facts)
    return facts


def _declared(public: bool) -> None:
    if public is not True:
        raise PrivacyError(
            "Pruning learns from text without any noise: declare that all of it is public (public=True, --public on "
            "the command line), or use none of it."
        )


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"Can't read --text {text}; expected a file of UTF-8 text.") from None


def _load(source: ModelSource, tokenizer: Any, device: torch.device) -> tuple[Objective, Any]:
    """The model with the head that it was saved with, if that is a language model's."""
    if source.drawn is not None:
        raise InputError(f"{source.public_name} has no pretrained weights, so there is nothing to prune by size.")
    attention = attention_for(compute_dtype("auto", device), device)
    encoder = load_encoder(source, attention)
    family = family_of(encoder)
    if not family.tokens or encoder.config.is_encoder_decoder:
        raise InputError(f"Expected a text encoder or decoder to prune on text, found a {family.model_type} model.")
    made = " ".join(encoder.config.architectures or ())
    if tokenizer.mask_token_id is not None and ("ForMaskedLM" in made or "ForPreTraining" in made):
        return "masked-lm", load_language_model(source, "masked-lm", attention)
    if "ForCausalLM" in made or "LMHead" in made:
        return "causal-lm", load_language_model(source, "causal-lm", attention)
    return "hidden-states", encoder


def _loss(objective: Objective, tokenizer: Any, model: Any, seed: int, *, distil: bool) -> DistilLoss:
    if objective == "hidden-states":
        return hidden_states_loss
    if objective == "causal-lm":
        return causal_loss(distil=distil)
    size = int(model.config.vocab_size)
    vocabulary = Vocabulary(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), size)
    return masked_loss(vocabulary, torch.Generator().manual_seed(seed), distil=distil)


def _windows(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """The text cut into windows of ``length`` tokens, special ones included; the last may be shorter."""
    made = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    if len(made) < 2:
        raise InputError(f"Expected more text than one window of {length} tokens; give a longer --text.")
    return list(made)


def _batches(windows: list[list[int]], tokenizer: Any, pruning: Pruning, device: torch.device) -> Iterator[Batch]:
    """Windows in random order, again and again."""
    generator, waiting = torch.Generator().manual_seed(pruning.seed), list[int]()
    pad = tokenizer.pad_token_id or 0  # which id is behind the mask does not matter
    while True:
        while len(waiting) < pruning.batch:
            waiting += torch.randperm(len(windows), generator=generator).tolist()
        rows = [torch.tensor(windows[i]) for i in waiting[: pruning.batch]]
        waiting = waiting[pruning.batch :]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        yield {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
