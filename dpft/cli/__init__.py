"""The command line. Errors become one sentence and an exit code; see ``dpft/errors.py``."""

from dpft.cli.main import main

__all__ = ["main"]
