"""Records: read, split, tokenised, collated. Torch and the Hugging Face libraries are imported on use."""

from dpft.data.collate import Collator
from dpft.data.fingerprint import fingerprint
from dpft.data.heldout import is_held_out, split_held_out
from dpft.data.load import TextData, load_text_data, public_id
from dpft.data.offline import is_offline
from dpft.data.records import Record, record_key, render
from dpft.data.synthetic import synthetic_examples
from dpft.data.tokenise import Example, tokenise

__all__ = [
    "Collator",
    "Example",
    "Record",
    "TextData",
    "fingerprint",
    "is_held_out",
    "is_offline",
    "load_text_data",
    "public_id",
    "record_key",
    "render",
    "split_held_out",
    "synthetic_examples",
    "tokenise",
]
