"""Image records: the digits, image files, and what becomes of them on their way to a model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpft.config import DataSection, Recipe, dump_recipe, parse_recipe, validate
from dpft.data import (
    ImageCollator,
    ImageRecord,
    fingerprint,
    hub,
    image_examples,
    load_image_data,
    public_id,
    synthetic_images,
)
from dpft.errors import InputError

pytestmark = pytest.mark.usefixtures("home")

DIGITS = [str(i) for i in range(10)]
SENTINEL = "private-sentinel-7261"


def section(**fields: object) -> DataSection:
    values = {"source": "csv", "path": "a.csv", "image": "file", "labels": ["cat", "dog"], "unit": "scan", **fields}
    return validate(DataSection, {k: v for k, v in values.items() if v is not None}, "data")


def digits(**fields: object) -> DataSection:
    return section(**{"source": "digits", "path": None, "image": None, "labels": DIGITS, **fields})


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def grey(seed: int, side: int = 6) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def write(**files: bytes) -> None:
    for name, content in files.items():
        Path(name.replace("__", "/").replace("_", ".")).write_bytes(content)


def read(found: DataSection, shape: tuple[int, int, int] = (1, 8, 8)) -> list[Any]:
    return list(image_examples(load_image_data(found).train, found, shape))


def refusal(*, shape: tuple[int, int, int] = (1, 4, 4), **fields: object) -> str:
    with pytest.raises(InputError) as caught:
        read(section(**fields), shape)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert SENTINEL not in str(caught.value)
    return str(caught.value)


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_image_data(digits(heldout=0.202))
    everything = load_image_data(digits()).train
    assert (len(data.train), len(data.heldout)) == (1437, 360)  # what recipes/digits.toml says
    examples = list(image_examples(everything, digits(), (1, 8, 8)))
    theirs = load_digits()
    assert np.array_equal(np.stack([e["pixels"][0] for e in examples]), theirs.images)
    assert [e["label"] for e in examples] == theirs.target.tolist()
    assert data.public_id == public_id(digits(heldout=0.202)) == "digits@train,heldout=0.202"


def test_one_digit_more_or_less_moves_no_other() -> None:
    """The held-out side, the example and the fingerprint's order are each record's own."""
    from dpft.data import split_held_out

    records = load_image_data(digits()).train
    train, heldout = split_held_out(records, 0.3)
    less, heldout_less = split_held_out(records[:100] + records[101:], 0.3)
    gone = records[100]
    assert tuple(r for r in train if r is not gone) == less
    assert tuple(r for r in heldout if r is not gone) == heldout_less
    assert fingerprint(train) != fingerprint(train[1:])
    alone = [next(image_examples([r], digits(), (1, 8, 8)))["pixels"] for r in records[:5]]
    together = list(image_examples(records[:5], digits(), (1, 8, 8)))
    assert all(np.array_equal(a, b["pixels"]) for a, b in zip(alone, together, strict=True))


def test_labels_go_by_name() -> None:
    backwards = load_image_data(digits(labels=DIGITS[::-1])).train
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    forwards = load_image_data(digits(labels=words)).train
    assert all(a.label == 9 - b.label for a, b in zip(backwards, forwards, strict=True))
    with pytest.raises(InputError, match=r"data\.labels"):  # a 1 that would be the first class or the second
        load_image_data(digits(labels=[str(i) for i in range(1, 11)]))


def test_larger_models_see_a_square_for_each_pixel() -> None:
    record = load_image_data(digits()).train[3]
    (small,) = image_examples([record], digits(), (1, 8, 8))
    (large,) = image_examples([record], digits(), (3, 16, 24))
    assert large["pixels"].shape == (3, 16, 24)
    assert np.array_equal(large["pixels"], np.broadcast_to(np.kron(small["pixels"][0], np.ones((2, 3))), (3, 16, 24)))
    with pytest.raises(InputError, match="multiple of 8"):
        next(image_examples([record], digits(), (1, 12, 12)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_by_the_recipes_constants(channels: int) -> None:
    mean, std = [0.1, 0.2, 0.3][:channels], [0.5, 2.0, 4.0][:channels]
    found = digits(mean=mean, std=std)
    collate = ImageCollator.for_section(found, (channels, 8, 8))
    examples = synthetic_images(5, 10, collate)
    batch = collate(examples)
    raw = np.stack([e["pixels"] for e in examples]).astype(np.float64)
    truth = (raw / 16 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(batch["pixel_values"].numpy(), truth, atol=1e-6)
    assert 0 <= raw.min() < 2
    assert 14 < raw.max() <= 16
    assert batch["labels"].tolist() == [e["label"] for e in examples]
    empty = collate([])
    assert empty["pixel_values"].shape == (0, channels, 8, 8)
    assert empty["labels"].shape == (0,)


def test_constants_are_one_for_all_channels_or_one_each() -> None:
    ImageCollator.for_section(digits(mean=[0.5], std=[0.5]), (3, 8, 8))
    with pytest.raises(InputError, match=r"data\.std: .* 3 channels, found 2"):
        ImageCollator.for_section(digits(std=[0.5, 0.5]), (3, 8, 8))


def test_image_files_are_decoded_as_pillow_does() -> None:
    """Names are relative to the list's own folder, not to the working directory."""
    from PIL import Image

    Path("scans/inner").mkdir(parents=True)
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write(scans__a_png=encoded(grey(1)), scans__inner__b_jpg=encoded(colour, "JPEG"))
    write(scans__a_csv=b"file,label\na.png,dog\ninner/b.jpg,cat\n")
    found = section(path="scans/a.csv")
    data = load_image_data(found)
    assert [r.label for r in data.train] == [1, 0]
    for mode, channels in (("L", 1), ("RGB", 3)):
        first, second = image_examples(data.train, found, (channels, 4, 5))
        for example, name in ((first, "a.png"), (second, "inner/b.jpg")):
            with Image.open(Path("scans") / name) as image:
                truth = np.asarray(image.convert(mode).resize((5, 4), Image.Resampling.BILINEAR))
            assert np.array_equal(example["pixels"], truth.reshape(4, 5, channels).transpose(2, 0, 1))
    assert ImageCollator.for_section(found, (1, 4, 5)).peak == 255
    assert data.public_id == "csv:a.csv@train"


def test_what_identifies_an_image_is_its_content() -> None:
    write(a_png=encoded(grey(1)), b_png=encoded(grey(1)), c_png=encoded(grey(2)))
    write(a_csv=b"file,label\na.png,dog\nb.png,cat\nc.png,cat\n")
    a, b, c = load_image_data(section()).train
    assert a.key == b.key != c.key
    assert repr(a) == "ImageRecord(...)"
    assert a != ImageRecord(c.content, a.label)


def test_json_parquet_and_the_hub_give_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet as Hugging Face writes images: a column of bytes and path."""
    import datasets

    pictures = [encoded(grey(i)) for i in range(3)]
    write(a_png=pictures[0], b_png=pictures[1], c_png=pictures[2])
    rows = [{"file": name, "label": i % 2} for i, name in enumerate(("a.png", "b.png", "c.png"))]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = datasets.Features(file=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    values = {"file": [{"bytes": p, "path": None} for p in pictures], "label": [0, 1, 0]}
    hugging = datasets.Dataset.from_dict(values, features=features)
    hugging.to_parquet("a.parquet")

    builder = SimpleNamespace(
        info=SimpleNamespace(splits={"train": None}),
        download_and_prepare=lambda: None,
        as_dataset=lambda split: hugging,
    )
    library = SimpleNamespace(load_dataset_builder=lambda *_, **__: builder, Image=datasets.Image)
    monkeypatch.setattr(hub, "_library", lambda: library)
    found = [
        load_image_data(section(source=source, path=path)).train
        for source, path in (("json", "a.jsonl"), ("parquet", "a.parquet"), ("hub", "someone/cats"))
    ]
    for records in found:
        assert [(r.content, r.label) for r in records] == [(p, i % 2) for i, p in enumerate(pictures)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image", "can't be decoded"),
        (encoded(grey(0, 64))[:-40], "can't be decoded"),
        (encoded(grey(0), "GIF"), "can't be decoded"),  # one reader less for a hostile file
        (encoded(grey(0).astype(np.uint16) * 257), "8 bits a channel"),  # Pillow would cut it at 255
        (b"", "missing, empty"),
    ],
    ids=["text", "truncated", "gif", "16 bits", "empty"],
)
def test_what_is_no_image_is_named_by_its_place(content: bytes, said: str) -> None:
    write(good_png=encoded(grey(1)))
    Path(f"{SENTINEL}.png").write_bytes(content)
    write(a_csv=f"file,label\ngood.png,dog\n{SENTINEL}.png,cat\n".encode())
    found = refusal()
    assert found.startswith("row 2 of a.csv: its image")
    assert said in found


@pytest.mark.parametrize("name", ["../{}.png", "ABOVE/{}.png", "{}.png", "a/../../{}.png"])
def test_files_outside_of_the_folder_are_not_read(name: str) -> None:
    absolute = name.format(SENTINEL).replace("ABOVE", str(Path("..").resolve()))  # of a file that is there
    write(a_csv=f"file,label\n{absolute},dog\n".encode())
    Path("..", f"{SENTINEL}.png").write_bytes(encoded(grey(1)))
    assert refusal().startswith("row 1 of a.csv")


def test_a_very_large_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpft.data.pixels.MAX_PIXELS", 35)
    write(a_png=encoded(grey(1)), a_csv=b"file,label\na.png,dog\n")
    assert "at most 35 pixels" in refusal()


@pytest.mark.parametrize(
    ("module", "extra"), [("sklearn.datasets", digits), ("PIL", section)], ids=["scikit-learn", "Pillow"]
)
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, module: str, extra: Any) -> None:
    write(a_png=encoded(grey(1)), a_csv=b"file,label\na.png,dog\n")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'pip install "dpft\[images\]"'):
        read(extra())


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (digits, "path", "a.csv"),
        (digits, "eval_path", "a.csv"),
        (digits, "split", "test"),
        (digits, "text", "t"),
        (digits, "text_pair", "t"),
        (digits, "template", "x {text}"),
        (digits, "max_length", 32),
        (digits, "label", "target"),
        (digits, "labels", ["a", "b"]),
        (digits, "std", [0.0]),
        (digits, "std", [-1.0]),
        (digits, "mean", ["0.5"]),
        (section, "text", "t"),
        (section, "max_length", 32),
        (section, "label", "file"),
    ],
)
def test_fields_that_make_no_sense_with_images_are_refused(make: Any, field: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        make(**{field: value})
    assert str(caught.value).startswith(f"data.{field}")


@pytest.mark.parametrize(("field", "value"), [("mean", [0.1]), ("std", [0.1])])
def test_pixel_constants_make_no_sense_with_texts(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"data.{field}.*not used with texts"):
        section(image=None, **{field: value})


IMAGES = """\
name = "x"
[data]
source = "digits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
unit = "image"
std = [0.25]
[model]
source = "config:vit.json"
[method]
name = "full"
[privacy]
epsilon = 8.0
delta = 1e-4
examples = 1437
expected_batch = 100
epochs = 1.0
[train]
token_budget = 34
"""


def test_a_recipe_of_images_reads_back_and_says_nothing_of_texts() -> None:
    recipe = parse_recipe(IMAGES)
    dumped = dump_recipe(recipe)
    assert parse_recipe(dumped) == recipe
    assert not [word for word in ("template", "max_length", "text =") if word in dumped]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"source": "config:vit.json", "pooling": "last"}}, "model.pooling"),
        ({"model": {"source": "config:"}}, "model.source"),
        ({"model": {"source": "config:vit.json", "revision": "x"}}, "model.revision"),
        ({"data": {"source": "movie-reviews", "labels": ["a", "b"], "unit": "sentence"}}, "model.tokenizer"),
    ],
)
def test_model_and_records_must_fit(change: dict[str, Any], said: str) -> None:
    values = parse_recipe(IMAGES).model_dump(exclude_none=True)
    with pytest.raises(InputError) as caught:
        validate(Recipe, {**values, "method": {"name": "full"}, "train": {}, **change})
    assert said in str(caught.value)
