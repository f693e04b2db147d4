"""Draw digits with the fonts that matplotlib carries, bent and jittered, and pretrain a small ViT on them.

    python benchmarks/synthetic_digits.py models/vit-synthetic-digits

No record of any data set is read: fonts and a random generator make every image, so what is learned is public and can
be the base model of a private run (``--set model.source=models/vit-synthetic-digits``). A drawing goes through the
steps that the digits' own documentation gives: a bitmap of 32 x 32 in which the digit fills the height, then the
number of black pixels in each block of 4 x 4, from 0 to 16.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter, map_coordinates

from dpft.models.classifier import ImageClassifier
from dpft.models.drawn import Drawn
from dpft.models.source import quiet

CANVAS, BITMAP, SIDE, PEAK = 64, 32, 8, 16
CONFIG = {
    "model_type": "vit",
    "image_size": SIDE,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}
# Of matplotlib's fonts those whose digits look like digits: no symbols, no old-style figures.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono",
    "DejaVuSansMono-Oblique", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip


@dataclass(frozen=True)
class Glyphs:
    """Every digit in every font, dark on light turned to ink from 0 to 1: [10 x fonts, CANVAS, CANVAS]."""

    ink: NDArray[np.float32]
    labels: NDArray[np.int64]


def glyphs() -> Glyphs:
    """Draw each digit once with each font."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = [_glyph(str(digit), folder / f"{name}.ttf") for name in FONTS for digit in range(10)]
    return Glyphs(np.stack(drawn), np.tile(np.arange(10), len(FONTS)))


def _glyph(digit: str, font: Path) -> NDArray[np.float32]:
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    ImageDraw.Draw(canvas).text(
        (CANVAS / 2, CANVAS / 2), digit, font=ImageFont.truetype(str(font), 42), fill=255, anchor="mm"
    )
    return np.asarray(canvas, dtype=np.float32) / 255


def synthetic_digits(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [count, 8, 8] of 0..16 and their classes [count]."""
    table = glyphs()
    chosen = rng.integers(len(table.labels), size=count)
    images = np.stack([_blocks(_bitmap(_bent(table.ink[i], rng), rng)) for i in chosen])
    return images, table.labels[chosen]


def _bent(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Turned, sheared, squeezed and bent like elastic, as handwriting is."""
    angle, shear = np.deg2rad(rng.normal(0, 9)), rng.normal(0, 0.2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grid = np.stack(np.meshgrid(*[np.arange(CANVAS) - CANVAS / 2] * 2, indexing="ij"))
    grid = np.einsum("ij,jyx->iyx", turn @ np.array([[1, 0], [shear, 1]]), grid)
    bend = np.stack([gaussian_filter(rng.normal(size=(CANVAS, CANVAS)), 6) for _ in range(2)])
    grid = grid + bend * (rng.uniform(0.5, 3.5) / bend.std()) + CANVAS / 2
    bent: NDArray[np.float32] = map_coordinates(ink, grid, order=1)
    return bent


def _bitmap(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Thinner or fatter strokes, then cut out and scaled so that the digit fills the height: [32, 32] of 0 and 1."""
    blurred = gaussian_filter(ink, rng.uniform(0.7, 2))
    stroke = blurred > blurred.max() * rng.uniform(0.15, 0.5)
    rows, columns = (np.flatnonzero(stroke.any(axis=axis)) for axis in (1, 0))
    cut = Image.fromarray(stroke[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8) * 255)
    width = int(np.clip(BITMAP * cut.width / cut.height * rng.uniform(0.75, 1.2), 4, BITMAP))
    bitmap = np.zeros((BITMAP, BITMAP), dtype=np.float32)
    left = (BITMAP - width) // 2
    bitmap[:, left : left + width] = np.asarray(cut.resize((width, BITMAP), Image.Resampling.BILINEAR)) > 127
    return bitmap


def _blocks(bitmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    step = BITMAP // SIDE
    return bitmap.reshape(SIDE, step, SIDE, step).sum(axis=(1, 3)).astype(np.uint8)


def pretrain(images: NDArray[np.uint8], labels: NDArray[np.int64], *, steps: int, seed: int) -> ImageClassifier:
    """Ordinary training, which is not private and need not be: there are no records."""
    model = ImageClassifier(Drawn(CONFIG, seed).build(), 10, "mean", None).train()
    pixels = (torch.from_numpy(images).float().unsqueeze(1) / PEAK - 0.5) / 0.5
    targets, generator = torch.from_numpy(labels), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        at = torch.randint(len(targets), (256,), generator=generator)
        loss = F.cross_entropy(model(pixels[at]), targets[at], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where the model goes, as transformers saves it")
    parser.add_argument("--images", type=int, default=15_000, help="drawings")
    parser.add_argument("--steps", type=int, default=2_000, help="training steps of 256 drawings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    images, labels = synthetic_digits(options.images, np.random.default_rng(options.seed))
    print(f"{options.images} drawings in {time.perf_counter() - start:.0f} s", flush=True)
    model = pretrain(images, labels, steps=options.steps, seed=options.seed)
    with quiet():
        model.encoder.save_pretrained(options.folder)
    save_file({name: p.detach() for name, p in model.head.named_parameters()}, options.folder / "head.safetensors")
    print(f"{options.folder}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
