"""Probes of one worker: a real forward every so often, and the end of a process that hangs.

A worker is *hung* when `probe_strikes` probes in a row had no good answer in time while none of its streams brought
anything either: a busy one still moves, or answers that it is busy.
"""

from __future__ import annotations

import asyncio
import logging
import time

from ...protos import probewire_pb2 as pb
from ...protos.errors import ProbewireError, Unavailable
from ...protos.model import ModelInfo
from ...protos.wire.codec import from_proto
from ..config import Supervision
from .channel import WorkerChannel
from .process import WorkerProcess

__all__ = ["Watch"]

log = logging.getLogger("probewire.server.gateway.workers")

LIST_S = 30.0
"""How long a worker that has answered a probe may take to say what it holds."""


class Watch:
    """Of one model, over all runs of its worker."""

    def __init__(self, model: str, supervision: Supervision) -> None:
        self._model, self._supervision = model, supervision
        self._probed_s = 0.0

    @property
    def age_s(self) -> float:
        """How long ago the last good probe was."""
        return time.monotonic() - self._probed_s

    async def first(self, channel: WorkerChannel) -> ModelInfo:
        """What a worker that has just loaded holds, once its first forward ran. Raises why it did not."""
        report = await channel.health(self._supervision.probe_timeout_s * self._supervision.probe_strikes)
        if not report.ready:
            raise Unavailable(f"model {self._model!r} loaded, but its first forward failed: {report.detail}")
        self._probed_s = time.monotonic()
        listed = pb.ModelList.FromString(await channel.unary("/probewire.v1.Models/List", b"", timeout_s=LIST_S))
        return from_proto(ModelInfo, listed.models[0])

    async def until_dead(self, process: WorkerProcess, channel: WorkerChannel) -> str:
        """Probe until the process is gone; kill it when it hangs. Gives the cause."""
        ended = asyncio.create_task(process.ended.wait())
        strikes = 0
        try:
            while True:
                await asyncio.wait([ended], timeout=self._supervision.probe_interval_s)
                if not ended.done():
                    trouble = await self._probe(channel)
                    strikes = strikes + 1 if trouble else 0
                    if strikes >= self._supervision.probe_strikes:
                        process.kill(f"{trouble}, {strikes} times in a row")
                        await ended
                if ended.done():
                    return process.ending
        finally:
            ended.cancel()

    async def _probe(self, channel: WorkerChannel) -> str:
        """Empty when all is well or the worker is busy, else what is wrong."""
        asked_s = time.monotonic()
        try:
            report = await channel.health(self._supervision.probe_timeout_s)
        except ProbewireError as error:
            trouble = error.message
        else:
            trouble = "" if report.ready else report.detail
        if not trouble:
            self._probed_s = time.monotonic()
        elif channel.last_message_s > asked_s:
            trouble = ""
            self._probed_s = channel.last_message_s
        else:
            log.warning("model %s: %s", self._model, trouble)
        return trouble
