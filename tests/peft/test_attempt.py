"""ATTEMPT: its formula, prompts from a file, several tasks under one budget, and padding that moves nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

import dpft
from dpft.engine.collect import collect
from dpft.engine.preflight import preflight
from dpft.errors import InputError
from dpft.peft import Attempt, attach
from dpft.peft.attempt import MixedPrompt
from dpft.peft.prompt_file import add_prompt, read_prompts
from dpft.per_sample import capture, per_example_gradients

SMALL: dict[str, Any] = {"count": 2, "length": 3, "width": 4, "temperature": 0.5}


def part_of(model: nn.Module) -> MixedPrompt:
    return next(m for m in model.modules() if isinstance(m, MixedPrompt))


def moved(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=g).to(p)
    return model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two prompts [3, 16]."""
    path, g = tmp_path / "prompts.safetensors", torch.Generator().manual_seed(7)
    for name in ("first task", "second task"):
        add_prompt(path, name, torch.randn(3, 16, generator=g))
    return path


def by_hand(part: MixedPrompt, tokens: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """The prompt [P, d] and the weights [t+1] of one text's own embeddings [T, d]; the paper's equations in order."""
    new = part.prompt[3 * task : 3 * task + 3]
    x = tokens.max(dim=0).values
    low = part.down.weight @ x
    h = part.up.weight @ (low * torch.sigmoid(low))
    H = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() * part.norm.weight + part.norm.bias
    scores = torch.stack([p.max(dim=0).values @ H for p in (*part.sources, new)]) / part.temperature
    a = scores.exp() / scores.exp().sum()
    return new + sum(w * p for w, p in zip(a, (*part.sources, new), strict=True)), a


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_formula(tasks: int, tiny_encoder: Callable[..., Any]) -> None:
    model = moved(attach(tiny_encoder("bert"), Attempt(**SMALL, tasks=tasks)))
    part = part_of(model)
    embeds, lengths = torch.randn(4, 6, 16, dtype=torch.float64), (6, 4, 1, 3)
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    ids = torch.tensor([0, 2, 1, 2]) % tasks
    arguments = {"task_ids": ids, "other": 1} if tasks > 1 else {"other": 1}
    with torch.no_grad():
        found = part.vectors(embeds, mask, arguments)
        weights = part.attention(found, part.summary(embeds, mask))
        assert arguments == {"other": 1}
        for i, n in enumerate(lengths):
            expected, _ = by_hand(part, embeds[i, :n], int(ids[i]))
            torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-9)
    assert weights.shape == (4, 3)
    assert torch.equal(part.summary(embeds, torch.zeros_like(mask)), torch.zeros(4, 16, dtype=torch.float64))


def test_the_usual_temperature_and_start(prompts: Path, tiny_encoder: Callable[..., Any]) -> None:
    """e times the width; every P_new is the first source; the LayerNorm trains if asked for and is stored anyway."""
    model = attach(tiny_encoder("bert"), Attempt(str(prompts), count=2, length=3, tasks=2))
    part = part_of(model)
    assert part.temperature == pytest.approx(math.e * 16)
    assert torch.equal(part.prompt, part.sources[0].repeat(2, 1))
    assert torch.equal(part.sources, read_prompts(prompts).prompts.double())
    trained = {n for n, p in part.named_parameters() if p.requires_grad}
    assert trained == {"prompt", "down.weight", "up.weight"}
    other = attach(tiny_encoder("bert"), Attempt(str(prompts), count=2, length=3, train_norm=True))
    assert {n for n, p in part_of(other).named_parameters() if p.requires_grad} == {
        *trained,
        "norm.weight",
        "norm.bias",
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_example_does_not_know_how_long_its_neighbours_are(side: str, tiny_encoder: Callable[..., Any]) -> None:
    """The same attention, prompt and gradients alone and beside a longer text, bit for bit where rounding allows."""
    model = moved(attach(tiny_encoder("roberta"), Attempt(**SMALL, train_norm=True)))
    part, g = part_of(model), torch.Generator().manual_seed(3)
    short, pad = torch.randint(3, 23, (1, 3), generator=g), torch.zeros(1, 5, dtype=torch.long)
    row = torch.cat([pad, short] if side == "left" else [short, pad], dim=1)
    ids = torch.cat([row, torch.randint(3, 23, (1, 8), generator=g)])
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    # In this table padding is the highest of all: with it among them every maximum would be another.
    table[0] = table.abs().max() + 1
    mask = (ids != 0).long()
    with torch.no_grad():
        alone = part.summary(table[short], torch.ones_like(short))
        assert torch.equal(part.summary(table[ids], mask)[:1], alone)
        assert not torch.equal(table[ids].amax(dim=1)[:1], alone)

    def loss(model: Any, b: dict[str, Tensor]) -> Tensor:
        out = model(**b).last_hidden_state
        return (out * b["attention_mask"].unsqueeze(-1)).sin().sum(dim=(1, 2))

    both = {"input_ids": ids, "attention_mask": mask}
    with capture(model) as grads:
        loss(model, both).sum().backward()
    truth = per_example_gradients(model, loss, {"input_ids": short, "attention_mask": torch.ones_like(short)})
    for name, expected in truth.items():
        torch.testing.assert_close(grads[name].dense()[:1], expected, rtol=1e-8, atol=1e-10)


class ManyTasks(nn.Module):
    """A head for each task on one encoder: how a library user trains several tasks on one budget."""

    def __init__(self, encoder: nn.Module, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(16, n) for n in classes).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor) -> list[Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, task_ids=task_ids).last_hidden_state
        return [head(hidden[:, 0]) for head in self.heads]


def many_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Each example's own task's; heads of the others get a gradient of zero from it."""
    inputs = {name: t for name, t in batch.items() if name != "labels"}
    losses = [
        F.cross_entropy(logits, batch["labels"].clamp_max(logits.shape[1] - 1), reduction="none")
        for logits in model(**inputs)
    ]
    return torch.stack(losses, dim=1).gather(1, batch["task_ids"].unsqueeze(1)).squeeze(1)


def many_batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 3, 5])[:, None]).long()
    ids = torch.randint(3, 23, (5, 6), generator=g) * mask
    tasks = torch.tensor([0, 2, 0, 1, 2])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0, 2]), "task_ids": tasks}


def test_several_tasks_on_one_budget(tiny_encoder: Callable[..., Any], tmp_path: Path, same_form: Any) -> None:
    """Gradients equal the oracle's; an example's are zero in the prompts and heads of other tasks; and one engine
    trains all that there is."""
    torch.manual_seed(0)
    model = ManyTasks(tiny_encoder("bert"), (2, 3, 4))
    moved(attach(model, Attempt(**SMALL, tasks=3), train=("heads",)))
    batch = many_batch()
    uses = preflight(model, many_loss, batch)
    grads, _ = collect(model, many_loss, batch, expected=5, uses=uses)
    for name, expected in per_example_gradients(model, many_loss, batch).items():
        same_form(grads[name], expected)
    of_tasks = grads["encoder.soft_prompt.prompt"].dense().unflatten(1, (3, 3))
    for i, task in enumerate(batch["task_ids"].tolist()):
        assert [bool(of_tasks[i, k].any()) for k in range(3)] == [k == task for k in range(3)]
        assert [bool(grads[f"heads.{k}.weight"].dense()[i].any()) for k in range(3)] == [k == task for k in range(3)]
    assert grads["encoder.soft_prompt.prompt"].numel < of_tasks.numel()  # rows of its own task alone
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    examples = [{k: v[i] for k, v in batch.items()} for i in range(5)]
    plan = dpft.plan(noise_multiplier=1.0, delta=1e-5, sample_rate=0.5, expected_batch=2, steps=2, clip=1.0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    collate: Any = torch.utils.data.default_collate

    def kept(rows: list[dict[str, Tensor]]) -> Any:
        return collate(rows) if rows else {k: v[:0] for k, v in batch.items()}

    with dpft.PrivateEngine(model, optimizer, plan, loss=many_loss, ledger=tmp_path / "ledger.jsonl") as engine:
        engine.preflight(batch)
        for drawn in engine.batches(examples, kept):
            engine.step(drawn)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set(uses_of(model))


def uses_of(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "electra", "deberta-v2", "mpnet", "distilbert", "modernbert", "gpt2", "llama", "t5"]
)
def test_task_models_hand_the_tasks_on(family: str, task: Callable[..., Any], same_form: Any) -> None:
    """Heads of transformers: ``task_ids`` stands in the batch like everything else, also where a head keeps to itself
    what it doesn't know (DeBERTa, MPNet)."""
    t = task(family)
    moved(attach(t.model, Attempt(**SMALL, tasks=2), train=t.heads))
    batch = {**t.batch, "task_ids": torch.tensor([0, 1, 1, 0])}
    uses = preflight(t.model, t.loss, batch)
    grads, _ = collect(t.model, t.loss, batch, expected=4, uses=uses)
    for name, expected in per_example_gradients(t.model, t.loss, batch).items():
        if expected.norm() > 1e-9:
            same_form(grads[name], expected)
    with pytest.raises(InputError, match="Expected task_ids in the batch"):
        t.loss(t.model, t.batch)
    assert part_of(t.model).given is None


@pytest.mark.parametrize(
    ("ids", "says"),
    [(torch.tensor([0, 3]), "from 0 to 2"), (torch.tensor([-1, 0]), "from 0 to 2"), (torch.zeros(2), "whole numbers"),
     (torch.zeros(3, dtype=torch.long), r"shape \[2\]"), (None, "task_ids in the batch")],
)  # fmt: skip
def test_wrong_tasks_are_refused(ids: Any, says: str, tiny_encoder: Callable[..., Any]) -> None:
    model = attach(tiny_encoder("bert"), Attempt(**SMALL, tasks=3))
    with pytest.raises(InputError, match=says):
        model(input_ids=torch.full((2, 4), 5), task_ids=ids)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft of transformers
def test_an_adapter_brings_its_sources(prompts: Path, tiny_encoder: Callable[..., Any], tmp_path: Path) -> None:
    """Saved by the file's hash, without its path; loaded where there is no such file, and only by loading."""
    method = Attempt(sources=str(prompts), **SMALL)
    assert method.sha256 == read_prompts(prompts).sha256
    model = moved(attach(tiny_encoder("bert"), method))
    dpft.save_adapter(model, method, tmp_path / "adapter", base="tiny")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["method"]
    assert (said["sources"], said["sha256"]) == ("", method.sha256)
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    prompts.unlink()
    ids = torch.randint(3, 23, (2, 5))
    loaded = PeftModel.from_pretrained(tiny_encoder("bert"), tmp_path / "adapter").double()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
    empty = attach(tiny_encoder("bert"), method.stored)
    with pytest.raises(InputError, match="source prompts are missing"):
        empty(input_ids=ids)
    assert Attempt(sources=str(prompts), sha256=method.sha256, **SMALL).sha256 == method.sha256


def test_a_file_that_is_not_as_said_is_refused(prompts: Path, tiny_encoder: Callable[..., Any]) -> None:
    path = str(prompts)
    for fields, says in (
        ({"count": 3}, r"method.count=3 to be 2"),
        ({"length": 4}, r"method.length=4 to be 3"),
        ({"sha256": "0" * 64}, "another file than method.sha256 says"),
    ):
        with pytest.raises(InputError, match=says):
            Attempt(path, **{**SMALL, **fields})
    with pytest.raises(InputError, match="to be a file of source prompts"):
        Attempt(path + ".missing")
    with pytest.raises(InputError, match=r"found \[2, 3, 16\]"):
        attach(tiny_encoder("electra"), Attempt(path, **SMALL))  # whose embeddings have 12 numbers
    method = Attempt(path, **SMALL)
    add_prompt(prompts, "third", torch.zeros(3, 16))
    with pytest.raises(InputError, match="unchanged since the method was made"):
        attach(tiny_encoder("bert"), method)
    with pytest.raises(InputError, match="'third' already"):
        add_prompt(prompts, "third", torch.zeros(3, 16))
    with pytest.raises(InputError, match=r"shape \(3, 16\)"):
        add_prompt(prompts, "fourth", torch.zeros(4, 16))
    prompts.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="to be a file of source prompts"):
        read_prompts(prompts)


def test_images_have_no_tokens_to_attend_by(tiny_encoder: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="a model of texts"):
        attach(tiny_encoder("vit"), Attempt(**SMALL))


@pytest.mark.parametrize("field", ["count", "length", "width", "tasks", "temperature"])
def test_fields_are_checked(field: str) -> None:
    with pytest.raises(InputError, match=field):
        Attempt(**{field: 0})
