"""``dpft init``: a commented recipe for one's own file. Light: what reads the file is imported on use."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dpft.init import Wishes


def init_command(
    data: Annotated[Path, typer.Argument(help="A CSV, JSON-lines or Parquet file. Only its column names are read.")],
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help='The text; "text" by default.')] = None,
    text_pair: Annotated[str | None, typer.Option(metavar="COLUMN", help="A second text.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help='The label; "label" by default.')] = None,
    target: Annotated[str | None, typer.Option(metavar="COLUMN", help="The text to write.")] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Whose a row is: rows of one patient become one unit.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is learnt; classification by default, causal-lm with --target.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="All label names in order; they are never read from the file.")
    ] = None,
    records: Annotated[
        int | None, typer.Option(help="About how many units there are; rounded, unless their number is public.")
    ] = None,
    records_are_public: Annotated[
        bool, typer.Option("--records-are-public", help="The number is exact and public.")
    ] = False,
    epsilon: Annotated[float, typer.Option(help="Privacy budget.")] = 3.0,
    delta: Annotated[
        float | None, typer.Option(help="Chance that epsilon does not hold; below a tenth of 1/records by default.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="What a unit of privacy is called: letter, patient.")] = None,
    model: Annotated[str | None, typer.Option(help="The pretrained model, as model.source in a recipe.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The recipe; the data's name by default.")] = None,
) -> None:
    """Write a commented recipe for your own file. Reads the names of its columns and nothing else."""
    from dpft.init import Wishes, task_named

    names = tuple(name.strip() for name in labels.split(",")) if labels else ()
    wishes = Wishes(
        text, text_pair, label, target, group, task_named(task), names, records, records_are_public, epsilon, delta,
        unit, model,
    )  # fmt: skip
    write_recipe(data, wishes, out or Path(data.name).with_suffix(".toml"))


def write_recipe(data: Path, wishes: Wishes, out: Path) -> None:
    """Write the recipe where nothing is yet, and say in a sentence what is left to do."""
    from dpft.errors import InputError
    from dpft.init import recipe_for

    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or move it away.")
    made = recipe_for(data, wishes, out)
    try:
        with out.open("x", encoding="utf-8", newline="\n") as file:
            file.write(made.text)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror}); choose another --out.") from None
    first = f"; {', and '.join(made.left)}" if made.left else ""
    print(f"Wrote {out}{first}; then look at the promise with: dpft plan {shlex.quote(str(out))}")
