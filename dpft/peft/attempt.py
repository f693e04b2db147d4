"""ATTEMPT: a prompt mixed for every input out of prompts of other tasks (Asai et al. 2022, arXiv 2205.11961).

    x = max over the input's own tokens of its embeddings   [d]      p_j = max over the positions of P_j   [d]
    H = LayerNorm(W_up SiLU(W_down x))                      [d]      a = softmax_j(p_j . H / temperature)  [t+1]
    prompt = P_new + sum_j a_j P_j                          [P, d]   j = 1 .. t and new

P_1 .. P_t are frozen: prompts trained on public tasks (``dpft source-prompt``). P_new, W_down [r,d] and W_up [d,r]
train, and the LayerNorm if asked for (the paper counts it, its code freezes it). With several tasks each has a P_new
and all share the rest.

The published code takes the first maximum over padding, too: a text's prompt then depends on whether a longer one is
in its batch, and so does its gradient, which DP-SGD must be able to bound by itself. Here padding counts for nothing.
The published temperature, e times d, is made for T5's large embeddings. With small ones (BERT's) it leaves all weights
equal and W_down, W_up a gradient that noise drowns; 1 serves there. Both measured:
benchmarks/results/attempt_masking.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import FAMILIES, model_type
from dpft.peft.method import Method, expect_whole, placed
from dpft.peft.prompt import expect_above_zero, rows, table_of
from dpft.peft.prompt_file import read_prompts
from dpft.peft.soft_prompt import SoftPrompt, host_of, put_in

TASKS = "task_ids"


@dataclass(frozen=True)
class Attempt(Method):
    """``sources``: the file of ``count`` prompts of ``length`` vectors; without one they are rows of the vocabulary.
    ``sha256``: that file's, filled in by itself. A saved adapter brings the prompts along, and knows their file
    by that alone. ``width`` is r; ``temperature`` None is e times the width of an embedding. With ``tasks`` above 1
    every batch says by ``task_ids`` [B] whose prompt an example trains. Every P_new starts as the first source."""

    name: ClassVar[str] = "attempt"
    what: ClassVar[str] = "a prompt mixed out of public tasks' prompts (Asai et al. 2022)"
    merges: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokens",)

    sources: str = ""
    sha256: str = ""
    count: int = 6
    length: int = 100
    width: int = 100
    temperature: float | None = None
    train_norm: bool = False
    tasks: int = 1

    def __post_init__(self) -> None:
        for field in ("count", "length", "width", "tasks"):
            expect_whole(field, getattr(self, field))
        if self.temperature is not None:
            expect_above_zero("temperature", self.temperature)
        if self.file or (self.sources and not self.sha256):
            self._check_file()

    def _check_file(self) -> None:
        found = read_prompts(self.sources)
        if self.sha256 not in ("", found.sha256):
            raise InputError(f"method.sources={self.sources!r} is another file than method.sha256 says; restore it.")
        count, length, _ = found.prompts.shape
        for field, there in (("count", count), ("length", length)):
            if getattr(self, field) != there:
                raise InputError(
                    f"Expected method.{field}={getattr(self, field)} to be {there}, as in {self.sources!r}."
                )
        object.__setattr__(self, "sha256", found.sha256)  # frozen, and not yet handed out

    @property
    def identity(self) -> bool:
        return False

    @property
    def stored(self) -> Method:
        """A path says something about a machine, and nothing to another one."""
        return replace(self, sources="")

    @property
    def file(self) -> Path | None:
        """The file of source prompts, if it is here."""
        return Path(self.sources) if self.sources and Path(self.sources).exists() else None

    def inject(self, model: nn.Module, generator: torch.Generator) -> list[nn.Parameter]:
        """The part lies in the module that embeds the inputs."""
        host = host_of(model)
        if not FAMILIES[model_type(host)].tokens:
            raise InputError("Expected a model of texts: this one has no embeddings of tokens to attend by.")
        table = table_of(host)
        part = MixedPrompt(host, self, self._sources(table, generator), generator)
        put_in(part, model)
        if self.tasks > 1:
            part.watch(model)
        return [part.prompt, part.down.weight, part.up.weight, *(part.norm.parameters() if self.train_norm else ())]

    def _sources(self, table: Tensor, generator: torch.Generator) -> Tensor:
        """[t, P, d], NaN where only a saved adapter has them."""
        shape = (self.count, self.length, table.shape[1])
        if not self.sha256:
            return torch.stack([rows(table, self.length, generator) for _ in range(self.count)])
        if self.file is None:
            return torch.full(shape, math.nan, device=table.device, dtype=table.dtype)
        found = read_prompts(self.file)
        if found.sha256 != self.sha256 or found.prompts.shape != shape:
            raise InputError(
                f"Expected {self.sources!r} to hold prompts {list(shape)} for this model, unchanged since the method "
                f"was made; found {list(found.prompts.shape)}."
            )
        return found.prompts.to(table)


class MixedPrompt(SoftPrompt):
    """``prompt`` [k P, d] holds P_new of task i from row i P on: an example's gradient is kept as the P rows of its own
    task. ``sources`` [t, P, d] are saved with what trains. B examples, T tokens."""

    sources: Tensor

    def __init__(self, host: nn.Module, method: Attempt, sources: Tensor, generator: torch.Generator) -> None:
        super().__init__(host, method.length)
        width = sources.shape[2]
        self.tasks = method.tasks
        self.given: Tensor | None = None
        self.temperature = method.temperature or math.e * width
        self.register_buffer("sources", sources)
        self.empty = bool(method.sha256) and not method.file
        self.prompt = placed(sources[0].repeat(method.tasks, 1), host)
        self.down = _linear(width, method.width, host, generator)
        self.up = _linear(method.width, width, host, generator)
        self.norm = nn.LayerNorm(width, device="meta")
        self.norm.weight, self.norm.bias = placed(torch.ones(width), host), placed(torch.zeros(width), host)

    def fit_to(self, tensors: Mapping[str, Tensor]) -> None:
        """A saved adapter is about to be loaded, and brings the sources."""
        self.empty = False

    def vectors(self, embeds: Tensor, mask: Tensor, arguments: dict[str, Any]) -> Tensor:
        if self.empty:
            raise InputError(
                "The source prompts are missing: give their file as method.sources, or load the adapter that has them."
            )
        own = self._own(embeds.shape[0], embeds.device, arguments.pop(TASKS, self.given))
        return self.mixed(own, self.attention(own, self.summary(embeds, mask)))

    def watch(self, model: nn.Module) -> None:
        """See the tasks where ``model`` gets them: some task heads pass nothing on that they don't know."""

        def see(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.given = kwargs.get(TASKS)

        def forget(*_: Any) -> None:
            self.given = None

        self._handles.append(model.register_forward_pre_hook(see, with_kwargs=True))
        self._handles.append(model.register_forward_hook(forget, always_call=True))

    def _later(self, arguments: dict[str, Any]) -> dict[str, Any]:
        arguments.pop(TASKS, None)
        return super()._later(arguments)

    def summary(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """x [B, d] of embeddings [B, T, d]; zero for an example without a token."""
        present = (mask != 0).unsqueeze(-1)
        highest = embeds.masked_fill(~present, torch.finfo(embeds.dtype).min).amax(dim=1)
        return highest.masked_fill(~present.any(dim=1), 0.0)

    def attention(self, own: Tensor, x: Tensor) -> Tensor:
        """a [B, t+1] of P_new [B, P, d] and x [B, d]; the last is that of P_new."""
        H = self.norm(self.up(F.silu(self.down(x))))
        scores = [H @ self.sources.amax(dim=1).T, (H * own.amax(dim=1)).sum(dim=1, keepdim=True)]
        return torch.softmax(torch.cat(scores, dim=1) / self.temperature, dim=1)

    def mixed(self, own: Tensor, a: Tensor) -> Tensor:
        """[B, P, d]."""
        return own * (1 + a[:, -1, None, None]) + torch.einsum("bj,jpd->bpd", a[:, :-1].to(own), self.sources)

    def _own(self, examples: int, device: torch.device, tasks: Tensor | None) -> Tensor:
        """P_new [B, P, d] of each example's task."""
        if tasks is None:
            if self.tasks > 1:
                raise InputError(
                    f"Expected {TASKS} in the batch, one whole number below method.tasks={self.tasks} an example; let "
                    "collate add them."
                )
            tasks = torch.zeros(examples, dtype=torch.long, device=device)
        if tasks.shape != (examples,) or tasks.is_floating_point():
            raise InputError(f"Expected {TASKS} of shape [{examples}] and of whole numbers; check collate.")
        if tasks.device.type == "cpu" and not ((tasks >= 0) & (tasks < self.tasks)).all():
            raise InputError(f"Expected {TASKS} from 0 to {self.tasks - 1}, found another; check collate.")
        places = tasks.unsqueeze(1) * self.length + torch.arange(self.length, device=device)
        return F.embedding(places, self.prompt)


def _linear(inputs: int, outputs: int, like: nn.Module, generator: torch.Generator) -> nn.Linear:
    """Without bias, drawn as torch draws one, but from ``generator``."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    bound = 1 / math.sqrt(inputs)
    layer.weight = placed(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator), like)
    return layer
