"""Records: read, split, tokenised, collated. Torch and the Hugging Face libraries are imported on use."""

from dpft.data.collate import Collator
from dpft.data.fingerprint import fingerprint
from dpft.data.heldout import is_held_out, split_held_out
from dpft.data.images import ImageRecord
from dpft.data.load import ImageData, TextData, load_image_data, load_text_data, public_id
from dpft.data.offline import is_offline
from dpft.data.pixels import ImageCollator, ImageExample, image_examples, synthetic_images
from dpft.data.records import Record, record_key, render
from dpft.data.synthetic import synthetic_examples
from dpft.data.tokenise import Example, tokenise

__all__ = [
    "Collator",
    "Example",
    "ImageCollator",
    "ImageData",
    "ImageExample",
    "ImageRecord",
    "Record",
    "TextData",
    "fingerprint",
    "image_examples",
    "is_held_out",
    "is_offline",
    "load_image_data",
    "load_text_data",
    "public_id",
    "record_key",
    "render",
    "split_held_out",
    "synthetic_examples",
    "synthetic_images",
    "tokenise",
]
