"""Data sets of the Hugging Face hub. No remote code: ``datasets`` 4 and later has none to run.

The hub's library keeps what it fetched in its own cache (``HF_DATASETS_CACHE``); what must not lie there
is better read from files, see ``local.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from dpft.config import DataSection
from dpft.data.offline import is_offline
from dpft.data.rows import Row, check_columns, wanted_columns
from dpft.errors import InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_rows(section: DataSection, field: str, split: str) -> Iterator[Row]:
    """Rows of one split; ``field`` (``split`` or ``eval_split``) is named if there is no such split.

    InputError if the data set can't be had, or if a pinned commit was asked for and another is at hand.
    """
    builder = _prepared(section)
    splits = tuple(builder.info.splits or ())
    if split not in splits:
        raise InputError(f'data.{field}: {section.path} has no split "{split}"; it has {", ".join(splits)}.')
    rows = builder.as_dataset(split=split)
    check_columns(rows.column_names, section, f"{section.path}")
    rows = rows.select_columns(list(wanted_columns(section).values()))
    if section.image is not None:  # as it is encoded, so that every source's images are decoded by one reader
        rows = rows.cast_column(section.image, _library().Image(decode=False))
    for number, values in enumerate(rows, start=1):
        yield Row(f"row {number} of {section.path}, {split}", values)


def _prepared(section: DataSection) -> Any:
    """The data set's builder with everything downloaded."""
    name = section.path or ""
    if os.path.exists(name):
        # The library would read a folder of that name in place of the hub's data set.
        raise InputError(
            f'data.path: a local "{name}" hides the hub\'s data set of that name; '
            "rename it, or run from another folder."
        )
    datasets = _library()
    try:
        builder = datasets.load_dataset_builder(name, section.config, revision=section.revision)
        builder.download_and_prepare()
    except Exception as error:  # no closed list: its own, httpx's, OSError, ValueError
        kind = type(error).__name__
    else:
        _check_commit(section, builder)
        return builder
    what = f'the data set "{name}"{_with_config(section)}'
    raise InputError(f"data.path: {what} could not be loaded ({kind}); {_advice(kind)}")


def _library() -> Any:
    import datasets

    # No telemetry; and the variables may have been set after these libraries read them.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if is_offline():
        import huggingface_hub

        datasets.config.HF_HUB_OFFLINE = True
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    return datasets


def _check_commit(section: DataSection, builder: Any) -> None:
    """Without a network the library falls back to its newest cached copy, whatever its revision."""
    revision = section.revision or ""
    if _COMMIT.fullmatch(revision) and builder.hash != revision:
        raise InputError(
            f"data.revision: {section.path} at this commit is neither reachable nor cached; "
            "connect, or name the revision that is cached."
        )


def _with_config(section: DataSection) -> str:
    return f' with config "{section.config}"' if section.config else ""


def _advice(kind: str) -> str:
    if is_offline():
        return "fetching is forbidden by DPFT_OFFLINE or HF_HUB_OFFLINE, so it must be in the cache already."
    if kind == "DatasetNotFoundError":
        return "check its name and whether it needs a login."
    if kind == "ValueError":
        return "check data.config and data.revision."
    return 'check the network, or use local files (source = "csv", "json" or "parquet").'
