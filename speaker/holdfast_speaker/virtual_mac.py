# SPDX-License-Identifier: Apache-2.0
"""What a virtual MAC's macvlan is called, so that its maker, the fence and the next speaker know it. Pure."""

from typing import Final

PREFIX: Final = "hf-"
ALIAS: Final = "holdfast.dev/virtual-mac"


def device(mac: str) -> str:
    """``02:11:22:33:44:55`` lives on ``hf-021122334455``: as long as an interface's name may be."""
    return PREFIX + mac.replace(":", "")
