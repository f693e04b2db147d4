"""The ``[cache]`` table: keep the frozen backbone's outputs on disk, so that it runs once and not at every epoch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpft.config.base import Section


class CacheSection(Section):
    """What is kept is as private as the records: it lies under the run's ``private/`` folder.

    A run is refused where the cache does not fit the disk, which depends on how many tokens all records have together:
    the one thing about them that such a refusal tells."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="number type on disk; float32 is exact, the others halve the space"
    )
    keep: bool = Field(default=False, description="whether the cache stays when the run has finished")
