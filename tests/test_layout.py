"""The shape of the code: imports flow one way, files stay readable, light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DPFT, ACCOUNTING = ROOT / "dpft", ROOT / "accounting" / "dpft_accounting"

# A file may import from its own line and from the lines above it.
LINES = (
    ("dpft_accounting",),
    ("dpft.environment", "dpft.errors", "dpft.files"),
    ("dpft.config",),
    ("dpft.shapes",),
    ("dpft.counts",),
    ("dpft.cost",),
    ("dpft.data", "dpft.metrics"),
    ("dpft.per_sample",),
    ("dpft.models", "dpft.peft"),
    ("dpft.adapter", "dpft.engine", "dpft.interop"),
    ("dpft.quantise",),
    (
        "dpft.report",
        "dpft.average",
        "dpft.books",
        "dpft.cache",
        "dpft.evaluate",
        "dpft.journal",
        "dpft.schedule",
        "dpft.score_written",
        "dpft.suggest",
        "dpft.task",
        "dpft.usage",
    ),
    ("dpft.heldout",),
    ("dpft.public", "dpft.declared", "dpft.recipe_text"),
    ("dpft.paid_mask", "dpft.init"),
    ("dpft.export", "dpft.start"),
    ("dpft.run_folder",),
    ("dpft.run",),
    ("dpft.source_prompts", "dpft.sparsify"),
    ("dpft.reproduce",),
    ("dpft.cli",),
)
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(DPFT.rglob("*.py"))}


def line_of(module: str) -> int:
    for number, names in enumerate(LINES):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    raise AssertionError(f"{module} has no line: give it one in LINES")


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, also inside functions; relative ones are within one package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            # ``from dpft.engine import plan`` names a module by its parent.
            yield from (
                f"{node.module}.{a.name}"
                for a in node.names
                if (ROOT / node.module.replace(".", "/") / f"{a.name}.py").exists()
            )
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


def faults(path: Path, module: str) -> list[str]:
    own = [name for name in imports(path) if name.split(".")[0] in ("dpft", "dpft_accounting")]
    # ``from dpft import __version__`` reads a constant of the lazy package, which imports nothing itself.
    return [name for name in own if name != "dpft" and line_of(name) > line_of(module)]


@pytest.mark.parametrize("path", [p for p in MODULES if p != DPFT / "__init__.py"], ids=lambda p: MODULES[p])
def test_imports_flow_one_way(path: Path) -> None:
    assert faults(path, MODULES[path].removesuffix(".__init__")) == []


def test_the_reader_of_imports_fires(tmp_path: Path) -> None:
    """A detector never seen to fire proves nothing."""
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from dpft.run import run\n")
    assert faults(path, "dpft.engine.x") == ["dpft.run"]
    path.write_text("from dpft import cli\nimport dpft.report.write\n")
    assert faults(path, "dpft.data.x") == ["dpft.report.write"]


def test_the_accounting_knows_neither_torch_nor_the_toolkit() -> None:
    for path in ACCOUNTING.rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots.isdisjoint({"torch", "transformers", "dpft"}), path


def test_no_source_file_is_longer_than_350_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for folder in (DPFT, ACCOUNTING)
        for p in folder.rglob("*.py")
        if (n := p.read_text().count("\n")) > 350
    }
    assert long == {}


@pytest.mark.parametrize("package", ["dpft", "dpft.cli", "dpft.config", "dpft.engine.plan", "dpft_accounting"])
def test_light_packages_load_no_torch(package: str) -> None:
    code = f"import sys, {package}; print('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "False\n"


def test_nothing_unpickles_or_evaluates() -> None:
    """I1, I2: no source file names what runs code from a file."""
    for path in [*DPFT.rglob("*.py"), *ACCOUNTING.rglob("*.py")]:
        tree = ast.parse(path.read_text())
        called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert called.isdisjoint({"eval", "exec", "torch.load", "torch.save", "pickle.load", "pickle.loads"}), path
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots.isdisjoint({"pickle", "yaml", "joblib", "dill", "marshal", "shelve"}), path


def test_no_message_rests_on_assert() -> None:
    """F4: checks of what a user gives must survive ``python -O``; an assert may only narrow a type."""
    for path in DPFT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                assert node.msg is None, path
