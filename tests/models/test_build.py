"""What a task can't train on is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from dpft.errors import InputError
from dpft.models.build import task_model
from dpft.models.source import resolve


def test_an_encoder_decoder_has_no_features_of_one_text(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"encoder or a decoder for data\.task='classification'.*seq2seq"):
        task_model("classification", resolve(str(tmp_path)), outputs=2)
    assert task_model("seq2seq", resolve(str(tmp_path)), outputs=0).config.is_encoder_decoder
