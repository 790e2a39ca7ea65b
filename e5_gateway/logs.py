"""The gateway's log: one JSON object per line on stderr."""

import json
import logging
import sys
import time

log = logging.getLogger("gateway")


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        head = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(head | getattr(record, "fields", {}))


def log_to_stderr(level: str) -> None:
    """Set up the log of the program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)
