# SPDX-License-Identifier: Apache-2.0
"""Log lines on standard error: for people, or one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime

REPEATS_S = 30.0


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Throttle(logging.Filter):
    """One line in ``every_s`` seconds of a logger that repeats itself at each attempt of each watch."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._passed_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._passed_at < self._every_s:
            return False
        self._passed_at = record.created
        return True


def set_up_logs(level: str, form: str) -> None:
    """``level`` is ours; kopf speaks from warning on, unless debug is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        logging.getLogger("kopf").setLevel(logging.WARNING)
        for name in ("watching", "api", "fetching", "scanning"):
            logging.getLogger(f"kopf._cogs.clients.{name}").addFilter(Throttle(REPEATS_S))
