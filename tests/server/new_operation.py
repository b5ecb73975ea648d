"""An operation that exists in one test: a row and a function, and messages that there are already."""

from __future__ import annotations

from probewire.protos.model import Tokenized, TokenizeRequest
from probewire.protos.operations import BY_CALL, BY_NAME, Operation
from probewire.server.auth.callers import Caller
from probewire.server.config import Report, WorkerConfig
from probewire.server.worker.functions import FUNCTIONS
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations

ROW = Operation(
    name="Notes.Letters",
    call="letters",
    request=TokenizeRequest,
    answer=Tokenized,
    route="POST /v1/notes/letters",
    summary="Count the letters of a text",
)


def letters(model: LocalModel, caller: Caller, request: TokenizeRequest) -> Tokenized:
    """How many letters a text has, for whom, and by which model."""
    return Tokenized((len(request.input.text or ""),), (caller.user.name,), model.info.id)


def put_in() -> None:
    """What a release that has the operation would bring."""
    BY_NAME[ROW.name] = BY_CALL[ROW.call] = ROW
    FUNCTIONS[ROW.call] = letters


async def make(config: WorkerConfig, report: Report) -> LocalOperations:
    """The factory that the test gives to workers."""
    put_in()
    return await LocalOperations.create(config, report)
