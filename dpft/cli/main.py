"""Commands and exit codes: 0 done, 2 wrong input, 3 the promise would break, 1 anything else.

Heavy imports stand inside the commands: ``dpft --help`` must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dpft.cli.init import init_command
from dpft.environment import set_defaults

app = typer.Typer(
    name="dpft",
    help="Differentially private fine-tuning: plan a budget, train under it, show the books.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ledger_app = typer.Typer(help="Look into a ledger: budgets spent, by data set and run.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
cache_app = typer.Typer(help="What runs keep of the frozen backbone: show it, delete it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Epsilon = Annotated[float | None, typer.Option(help="Privacy budget; the noise is chosen for it.")]
Noise = Annotated[float | None, typer.Option("--noise-multiplier", help="Noise standard deviation over clip.")]
Rate = Annotated[
    float | None,
    typer.Option("--sample-rate", help="Chance of each record to join a batch (secret number of records)."),
]
Examples = Annotated[int | None, typer.Option(help="Public number of training records.")]

app.command("init")(init_command)


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.toml.")],
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
) -> None:
    """Plan, train privately, evaluate, and write the report and the adapter."""
    from dpft.cli.run import run_recipe

    run_recipe(recipe, overrides or [], out, resume=resume)


@app.command("plan")
def plan_command(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; or give the options below.")] = None,
    overrides: Set = None,
    epsilon: Epsilon = None,
    noise_multiplier: Noise = None,
    delta: Annotated[float | None, typer.Option(help="Chance that epsilon does not hold; below 1/records.")] = None,
    examples: Examples = None,
    sample_rate: Rate = None,
    batch: Annotated[float | None, typer.Option(help="Expected records in a logical batch.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Expected passes over the records.")] = None,
    steps: Annotated[int | None, typer.Option(help="Noisy steps.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of one example's gradient; 1 by default.")] = None,
    advantage: Annotated[
        float | None, typer.Option(help="Instead of epsilon: largest TPR - FPR of membership attacks.")
    ] = None,
    tpr: Annotated[float | None, typer.Option(help="Instead of epsilon: largest true-positive rate at --fpr.")] = None,
    fpr: Annotated[float | None, typer.Option(help="False-positive rate that --tpr speaks of.")] = None,
    mean_trials: Annotated[
        float | None, typer.Option(help="Plan each trial of a search for the best of so many on average.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the noise for a budget and certify it; with --epsilon and --examples alone, suggest the rest, too.

    Touches no private data."""
    from dpft.cli.plan import (
        cost_of_recipe,
        plan_for_options,
        plan_for_recipe,
        risk_from,
        show_plan,
        with_suggested,
    )

    options = {
        "epsilon": epsilon, "noise_multiplier": noise_multiplier, "delta": delta, "examples": examples,
        "sample_rate": sample_rate, "expected_batch": batch, "epochs": epochs, "steps": steps, "clip": clip,
    }  # fmt: skip
    risk = {"advantage": advantage, "tpr": tpr, "fpr": fpr}
    if recipe:
        beside = {**options, **risk, "mean_trials": mean_trials}
        made = plan_for_recipe(recipe, overrides or [], beside)
        show_plan(made, cost=cost_of_recipe(recipe, overrides or [], made), as_json=as_json)
    else:
        target = risk_from(**risk)
        options, suggested = with_suggested(options, target)
        made, search = plan_for_options(overrides or [], options, target, mean_trials)
        show_plan(made, search, suggested, as_json=as_json)


@app.command("account")
def account_command(
    ledger: Annotated[Path | None, typer.Argument(help="A ledger; or give a mechanism by the options.")] = None,
    noise_multiplier: Noise = None,
    sampler: Annotated[str | None, typer.Option(help="How batches are drawn: poisson, shuffled or full.")] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Chance of each record to join a batch; 1, the default, is the full batch.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Noisy steps; 1 by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the records, for shuffled batches.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta to report epsilon at.")] = None,
    adjacency: Annotated[str | None, typer.Option(help="add_remove, zero_out or replace.")] = None,
    examples: Examples = None,
    mechanism: Annotated[
        Path | None, typer.Option(help="A JSON file with any mechanism, as ledgers and plan.json hold them.")
    ] = None,
    paper: Annotated[str | None, typer.Option(help="Account for a paper's published claims again: yu2022.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the figures into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Epsilon of a mechanism by every accountant, or of a ledger, with lower and upper bound, and attack risk."""
    from dpft.cli.account import Asked, account

    asked = Asked(noise_multiplier, sampler, sample_rate, steps, epochs, delta, adjacency, examples, plot, mechanism)
    account(ledger, paper, asked, as_json=as_json)


@ledger_app.command("create")
def ledger_create(
    file: Annotated[Path, typer.Argument(help="The new ledger, one for a data set.")],
    dataset: Annotated[str, typer.Option(help="Public name of the data set; recipes must give the same.")],
    epsilon: Annotated[float, typer.Option(help="Budget of all runs together.")],
    delta: Annotated[float, typer.Option(help="Chance that epsilon does not hold.")],
    unit: Annotated[str, typer.Option(help="What one record is: the unit of privacy.")] = "example",
    examples: Examples = None,
    adjacency: Annotated[
        str | None, typer.Option(help="By default zero_out with --examples, else add_remove; or replace.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="A disjoint part of the data set; repeat for each.")] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Allow runs chosen by what earlier ones gave.")] = False,
) -> None:
    """Open the books of a data set: one budget for all runs on it."""
    from dpft_accounting import Budget, Unit

    from dpft.cli.ledger import create_ledger

    relation = adjacency or ("zero_out" if examples else "add_remove")
    who = Unit.from_dict({"name": unit, "adjacency": relation, "n_public": examples})
    create_ledger(file, dataset, who, Budget(epsilon, delta), part or [], adaptive=adaptive)


@ledger_app.command("show")
def ledger_show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="One or more ledgers.")],
    delta: Annotated[float | None, typer.Option(help="Delta to report epsilon at; the budget's by default.")] = None,
    sample_rate: Rate = None,
    steps: Annotated[int | None, typer.Option(help="Noisy steps of a planned run.")] = None,
    part: Annotated[str | None, typer.Option(help="The part that the planned run is on.")] = None,
    as_json: Json = False,
) -> None:
    """Spent and left, by data set and run; with --sample-rate and --steps, what remains for such a run."""
    from dpft.cli.ledger import next_run, show_ledgers

    show_ledgers(files, delta, next_run(sample_rate, steps, part), as_json=as_json)


@ledger_app.command("verify")
def ledger_verify(file: Annotated[Path, typer.Argument(help="A ledger.jsonl.")], as_json: Json = False) -> None:
    """Check the chain of hashes from the first line to the last."""
    from dpft.cli.ledger import verify_ledger

    verify_ledger(file, as_json=as_json)


@cache_app.command("show")
def cache_show(
    path: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or a folder of runs.")],
    as_json: Json = False,
) -> None:
    """The caches in a folder and their sizes. Private: they say how long the records are."""
    from dpft.cli.cache import show_caches

    show_caches(path, as_json=as_json)


@cache_app.command("delete")
def cache_delete(
    path: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or a folder of runs.")],
) -> None:
    """Delete the caches in a folder; a run that is resumed computes its own anew."""
    from dpft.cli.cache import delete_caches

    delete_caches(path)


@app.command("report")
def report_command(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")]) -> None:
    """Rebuild report.html, report.md and privacy.json from a run's plan, ledger and public metrics."""
    from dpft.cli.run import rebuild_report

    rebuild_report(folder)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished run's folder, or its adapter/.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new folder; whole or not there at all.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="One plain transformers model with the adapter folded in.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Merged, with Linear weights in 8 bits.")] = False,
    keep_pattern: Annotated[
        bool, typer.Option("--keep-pattern", help="Merged, without what would fill the zeros of a sparse base.")
    ] = False,
    base: Annotated[str | None, typer.Option(help="Where the base model is, if it was a local folder.")] = None,
) -> None:
    """Copy a trained adapter in HF peft's format, or merge it, with a README that says how to load it."""
    from dpft.cli.export import export_run

    export_run(folder, to, base, merged=merge, keep_pattern=keep_pattern, int8=int8)


@app.command("source-prompt")
def source_prompt_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe of the method prompt on public records.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Source prompts for the method attempt; added at its end.")],
    overrides: Set = None,
    name: Annotated[str | None, typer.Option(help="The prompt's name in the file; the recipe's by default.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Declare that all of the recipe's records are public.")
    ] = False,
) -> None:
    """Train a prompt on a public task WITHOUT privacy, for the method attempt to mix from."""
    from dpft.cli.source_prompt import train_source_prompt

    train_source_prompt(recipe, overrides or [], to, name, public=public)


@app.command("prune")
def prune_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished run's folder, or its adapter/.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new folder; whole or not there at all.")],
    ratio: Annotated[
        float | None, typer.Option(help="Share of the blocks' weights to set to zero; 0.2 by default.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Instead: attention heads to drop in each layer.")] = None,
    scope: Annotated[
        str, typer.Option(help="global: the lowest scores of all layers together; layer: the same share of each.")
    ] = "global",
    base: Annotated[str | None, typer.Option(help="Where the base model is, if it was a local folder.")] = None,
) -> None:
    """Merge a trained adapter and prune the model by its trained values: free of privacy cost."""
    from dpft.cli.export import prune_run

    prune_run(folder, to, base, ratio, heads, scope)


@app.command("sparsify")
def sparsify_command(
    model: Annotated[str, typer.Argument(help="The pretrained model, named as model.source in a recipe.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new model's folder; whole or not there at all.")],
    text: Annotated[Path, typer.Option(help="Text to learn from while pruning: a file in UTF-8.")],
    public: Annotated[bool, typer.Option("--public", help="Declare that all of the text is public.")] = False,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of each block Linear's weights that ends at zero; 0.85 by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all, the first half pruning; 1000 by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows of text in a step; 32 by default.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens in a window; 64 by default.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start of each half; 1e-4 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the windows and masked tokens; 0 by default.")] = None,
    distil: Annotated[
        bool, typer.Option("--distil/--no-distil", help="Whether half of the loss is to predict as the dense model.")
    ] = True,
) -> None:
    """Prune a pretrained model on public text WITHOUT privacy, for private training on top that keeps its zeros."""
    from dpft.cli.sparsify import sparsify_model

    options = {"sparsity": sparsity, "steps": steps, "batch": batch, "length": length, "lr": lr, "seed": seed}
    sparsify_model(model, to, text, public=public, distil=distil, **options)


@app.command("reproduce")
def reproduce_command(
    pattern: Annotated[
        str | None,
        typer.Argument(help="A recipe, a folder, a part of a path, or a glob; all with [expected] if absent."),
    ] = None,
    overrides: Set = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="All but training: plans, parameter counts, time and memory, without a hub."),
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, table and picture go.")] = Path(
        "runs/reproduce"
    ),
    nonprivate: Annotated[
        bool, typer.Option("--nonprivate/--no-nonprivate", help="Whether each recipe's twin WITHOUT privacy runs too.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run published experiments again and put the figures side by side; goes on where it stopped."""
    from dpft.cli.reproduce import reproduce, reproduce_dry

    if dry_run:
        reproduce_dry(pattern, overrides or [], out, as_json=as_json)
    else:
        reproduce(pattern, overrides or [], out, twins=nonprivate, as_json=as_json)


@app.command("methods")
def methods_command(as_json: Json = False) -> None:
    """The support matrix: which method is tested on which model family."""
    from dpft.cli.methods import show_methods

    show_methods(as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    set_defaults()
    try:
        app(standalone_mode=True)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print one clear sentence; the exit code. Text of unforeseen errors is not shown: it may hold a record."""
    code: Any = getattr(error, "exit_code", None)
    if isinstance(code, int):
        print(f"error: {error}", file=sys.stderr)
        return code
    if os.environ.get("DPFT_TRACEBACK"):
        raise error
    print(
        f"error: {type(error).__name__} was not foreseen. Nothing was released. Its text may quote a record, so it "
        "is not shown; set DPFT_TRACEBACK=1 to see it.",
        file=sys.stderr,
    )
    return 1
