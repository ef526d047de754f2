# SPDX-License-Identifier: Apache-2.0
"""What one speaker was asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """``environ`` tells the way to the API; ``metrics`` is host and port, or None for no metrics.

    ``advert_keys`` is the directory with the keys, or None for adverts without a trailer.
    """

    node: str
    version: str
    environ: Mapping[str, str]
    run_dir: Path
    metrics: tuple[str, int] | None
    log_level: int
    advert_keys: Path | None = None
    advert_auth: Literal["permissive", "enforce"] = "permissive"
