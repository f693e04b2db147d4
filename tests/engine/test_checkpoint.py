"""E2, G4, C5, I4: what is saved comes back, damage falls back, and nothing random is kept."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dpft.engine.checkpoint import Checkpoints

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adam": lambda ps: Adam(ps, 0.01),
    "amsgrad": lambda ps: Adam(ps, 0.01, amsgrad=True),
    "adamw with groups": lambda ps: AdamW([{"params": ps[:1], "weight_decay": 0.0}, {"params": ps[1:]}], 0.01),
    "sgd": lambda ps: SGD(ps, 0.01),
    "sgd with momentum": lambda ps: SGD(ps, 0.01, momentum=0.9),
}


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    """One update from made-up gradients."""
    g = torch.Generator().manual_seed(seed)
    for p in trained(model):
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(trained(one), trained(other), strict=True))


@pytest.fixture
def run(tmp_path: Path) -> tuple[nn.Module, Optimizer, Checkpoints]:
    """Two checkpoints, after 2 and 5 charged steps."""
    model = net()
    optimizer, checkpoints = Adam(trained(model), 0.01), Checkpoints(tmp_path / "private" / "checkpoints")
    for charged in (2, 5):
        step(model, optimizer, charged)
        checkpoints.save(model, optimizer, charged)
    return model, optimizer, checkpoints


def newest(checkpoints: Checkpoints) -> str:
    """The stem of the newest checkpoint's files."""
    return max(checkpoints.folder.glob("*.json"), key=lambda f: json.loads(f.read_text())["steps_charged"]).stem


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_restored_run_goes_on_exactly_as_the_first(
    make: Callable[[list[nn.Parameter]], Optimizer], tmp_path: Path
) -> None:
    """E2: given the same gradients; parameters and optimizer state, bit for bit."""
    first, second, checkpoints = net(), net(), Checkpoints(tmp_path)
    one, two = make(trained(first)), make(trained(second))
    step(first, one, 0)
    for charged in (1, 2, 3):
        step(first, one, charged)
        checkpoints.save(first, one, charged)
    assert checkpoints.restore(second, two) == (3, None)
    assert same(first, second)
    for seed in (10, 11):
        step(first, one, seed)
        step(second, two, seed)
        assert same(first, second)


def test_learning_rate_that_a_schedule_moved_is_restored(tmp_path: Path) -> None:
    model, checkpoints = net(), Checkpoints(tmp_path)
    optimizer = Adam(trained(model), 0.01)
    optimizer.param_groups[0]["lr"] = 0.25
    checkpoints.save(model, optimizer, 1)
    other = net()
    again = Adam(trained(other), 0.01)
    checkpoints.restore(other, again)
    assert again.param_groups[0]["lr"] == 0.25


def test_no_checkpoint_means_the_start(tmp_path: Path) -> None:
    model = net()
    assert Checkpoints(tmp_path / "none").restore(model, SGD(trained(model), 0.1)) == (0, None)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit of a tensor": (".safetensors", flip_a_byte),
    "half of the tensors": (".safetensors", truncate),
    "tensors gone": (".safetensors", Path.unlink),
    "half of the description": (".json", truncate),
    "an empty description": (".json", lambda f: f.write_bytes(b"")),
    "a description of another kind": (".json", lambda f: f.write_text("[1]")),
    "a description without its hash": (".json", lambda f: f.write_text('{"steps_charged": 5}')),
    "not text": (".json", lambda f: f.write_bytes(b"\xff\xfe\x00")),
}


@pytest.mark.parametrize(("suffix", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_newest_falls_back_and_says_so(
    suffix: str, damage: Callable[[Path], object], run: tuple[nn.Module, Optimizer, Checkpoints]
) -> None:
    """G4."""
    _, _, checkpoints = run
    damage(checkpoints.folder / (newest(checkpoints) + suffix))
    model = net()
    charged, remark = checkpoints.restore(model, Adam(trained(model), 0.01))
    assert charged == 2
    assert remark is not None
    assert "damaged" in remark


def test_both_damaged_starts_over_and_says_so(run: tuple[nn.Module, Optimizer, Checkpoints]) -> None:
    """G4: and leaves the model as it was."""
    _, _, checkpoints = run
    for file in checkpoints.folder.glob("*.safetensors"):
        flip_a_byte(file)
    model = net()
    before = [p.detach().clone() for p in trained(model)]
    charged, remark = checkpoints.restore(model, Adam(trained(model), 0.01))
    assert charged == 0
    assert remark is not None
    assert all(torch.equal(p, b) for p, b in zip(trained(model), before, strict=True))


def test_checkpoint_of_another_model_is_not_loaded(run: tuple[nn.Module, Optimizer, Checkpoints]) -> None:
    _, _, checkpoints = run
    other = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 4))
    assert checkpoints.restore(other, Adam(trained(other), 0.01))[0] == 0


def test_crash_between_the_two_writes_leaves_the_older_one(
    run: tuple[nn.Module, Optimizer, Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: the description is written last, and the newer slot is never the one overwritten."""
    from dpft.engine import checkpoint

    model, optimizer, checkpoints = run

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    for name in ("write_json", "write_atomic"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full_disk)
            with pytest.raises(OSError, match="No space"):
                checkpoints.save(model, optimizer, 8)
        assert checkpoints.restore(net_like := net(), Adam(trained(net_like), 0.01))[0] == 5


def test_files_are_private_and_hold_no_random_state(run: tuple[nn.Module, Optimizer, Checkpoints]) -> None:
    """I4, C5, F3: modes 0600 in 0700; parameters and optimizer state alone; no gradient, no partial file."""
    model, _, checkpoints = run
    assert stat.S_IMODE(checkpoints.folder.stat().st_mode) == 0o700
    files = sorted(checkpoints.folder.iterdir())
    assert {f.name for f in files} == {f"checkpoint-{i}{s}" for i in (0, 1) for s in (".json", ".safetensors")}
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)
    stored = load_file(checkpoints.folder / (newest(checkpoints) + ".safetensors"))
    names = {f"param.{n}" for n, p in model.named_parameters() if p.requires_grad}
    names |= {f"state.{i}.{key}" for i in range(4) for key in ("exp_avg", "exp_avg_sq", "step")}
    assert set(stored) == names
    described = json.loads((checkpoints.folder / (newest(checkpoints) + ".json")).read_text())
    assert set(described) == {"steps_charged", "sha256", "groups", "plain"}
    state = torch.get_rng_state()
    assert not any(t.numel() >= state.numel() // 8 for t in stored.values())
