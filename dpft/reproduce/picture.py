"""One picture of what was published and what came out, with and without privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dpft.reproduce.results import Result

_SERIES = (
    ("published, not private", "tab:gray", "none"),
    ("ours, not private", "tab:gray", "tab:gray"),
    ("published, private", "tab:blue", "none"),
    ("ours, private", "tab:blue", "tab:blue"),
)


def draw(found: Sequence[Result], stem: Path) -> list[Path]:
    """Write ``stem`` as .png and .svg: a line a recipe, hollow marks as published, filled ones as run. Nothing is
    written where there is no figure at all."""
    points = [_points(one) for one in found]
    if not any(value is not None for row in points for value in row):
        return []
    picture = Figure(figsize=(8, 1.2 + 0.3 * len(found)), layout="constrained")
    axes = picture.add_subplot()
    for (label, edge, face), values in zip(_SERIES, zip(*points, strict=True), strict=True):
        placed = [(value, row) for row, value in enumerate(values) if value is not None]
        axes.scatter([x for x, _ in placed], [y for _, y in placed], edgecolors=edge, facecolors=face, label=label)
    axes.set_yticks(range(len(found)), [one.name for one in found])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("accuracy in per cent, or the metric that was published")
    picture.legend(loc="outside lower center", ncols=2)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        picture.savefig(path, dpi=150)
    return paths


def _points(one: Result) -> tuple[float | None, ...]:
    """In the order of the series."""
    expected = one.expected
    published = expected and (expected.same_method or expected.nonprivate)
    private = expected and expected.private
    return (
        published.value if published else None,
        one.twin.value if one.twin else None,
        private.value if private else None,
        one.private.value,
    )
