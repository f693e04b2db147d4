"""Whether fetching is allowed."""

from __future__ import annotations

import os

OFFLINE_VARIABLES = ("DPFT_OFFLINE", "HF_HUB_OFFLINE")


def is_offline() -> bool:
    """True where DPFT_OFFLINE or HF_HUB_OFFLINE is set to anything but an empty text, 0, false, no, off."""
    return any(
        os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off") for name in OFFLINE_VARIABLES
    )
