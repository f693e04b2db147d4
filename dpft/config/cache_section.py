"""The ``[cache]`` table: keep the frozen backbone's outputs on disk, so that it runs once and not at every epoch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dpft.config.base import OptionalWord, Section, wrong


class CacheSection(Section):
    """What is kept is as private as the records: it lies under the run's ``private/`` folder, or in one of mode 0700.

    A run is refused where the cache does not fit the disk, which depends on how many tokens all records have together:
    the one thing about them that such a refusal tells."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="number type on disk; float32 is exact, the others halve the space"
    )
    keep: bool = Field(default=False, description="whether the cache stays when the run has finished")
    folder: OptionalWord = Field(
        default=None, description="a private folder that runs share for their caches; absent = the run's own private/"
    )

    @model_validator(mode="after")
    def _what_is_shared_stays(self) -> Self:
        if self.folder is not None and not self.keep:
            raise wrong("keep", "expected true with a folder that runs share; dpft cache delete FOLDER removes it")
        return self
