"""The server's log: for people at a terminal, or a JSON object a line for machines, with the request it is about."""

from __future__ import annotations

import json
import logging
import traceback

import orjson
from rich.console import Console
from rich.logging import RichHandler

from ...server.auth.callers import CALLER

__all__ = ["start_log"]


def start_log(*, as_json: bool = False) -> None:
    """Send our log to standard error, and of other libraries only what went wrong."""
    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonFormatter())
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False, log_time_format="[%X]")
        handler.setFormatter(logging.Formatter("%(message)s%(request)s", defaults={"request": ""}))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s", defaults={"request": ""})
        )
    handler.addFilter(_name_request)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("probewire").setLevel(logging.INFO)


def _name_request(record: logging.LogRecord) -> bool:
    caller = CALLER.get(None)
    if caller is not None:
        record.request = f" [{caller.request_id} {caller.user.name}]"
        record.request_id, record.user = caller.request_id, caller.user.name
    return True


class JsonFormatter(logging.Formatter):
    """time, level, logger, message; request and user where there are; error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request": getattr(record, "request_id", None),
            "user": getattr(record, "user", None),
            "error": "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None,
        }
        told = {key: value for key, value in line.items() if value is not None}
        try:
            return orjson.dumps(told).decode()
        except TypeError:  # half a surrogate pair, which is no text
            return json.dumps(told)
