"""How a gRPC call ends: with its answer, with an error's status, or with nobody there to hear either."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable
from typing import Any

import grpc.aio

from ..protos.errors import Cancelled, Internal, ProbewireError
from .grpc_status import abort

__all__ = ["answered", "log_callers_quietly", "write"]

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[bytes, bytes]

GRPC_LOGGER = "grpc._cython.cygrpc"
"""Where grpc's asyncio server says what went wrong outside our handlers."""
GONE = "a call ended unanswered: its caller left, or its deadline passed"


async def write(context: _Context, message: bytes) -> None:
    """Send a message of a stream. Raises Cancelled when there is no caller any more."""
    try:
        await context.write(message)
    except grpc.aio.InternalError:  # grpc's core has ended the call, and its cancellation has not reached us yet
        raise Cancelled(GONE) from None


async def answered(call: Awaitable[Any], context: _Context) -> Any:
    """The call's result, or its error as a status. A stranger never sees a traceback."""
    try:
        return await call
    except ProbewireError as error:
        await _refuse(context, error)
    except Exception:
        error_id = uuid.uuid4().hex[:12]
        log.exception("internal error %s", error_id)
        await _refuse(context, Internal(f"internal error {error_id}; the server's log has the details under that id"))
    return None


async def _refuse(context: _Context, error: ProbewireError) -> None:
    """End the call with a status; where there is no caller to take it, as a cancelled one."""
    try:
        await abort(context, error)
    except grpc.aio.InternalError:
        log.info(GONE)
        raise asyncio.CancelledError from None


def log_callers_quietly() -> None:
    """A last message that nobody takes is no fault of ours, and grpc logs it as one when it loses a race."""
    logging.getLogger(GRPC_LOGGER).addFilter(_quietly)


def _quietly(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, grpc.aio.InternalError) and type(error).__name__ == "ExecuteBatchError":
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.msg, record.args, record.exc_info, record.exc_text = GONE, (), None, None
    return True
