"""The control socket, through which commands such as `push1st reload` reach a running server.

The socket is in the server's run folder (`rundir`), so only the server's user and root can connect. A connection has one command
and its answers, each a line of JSON. The last answer is a `Result`, and any number of `Step`s may precede it. The only answer
to a `StatusRequest` is a `StatusAnswer`. A supervisor has the socket for all of its workers, and a single worker has its own.
"""

import asyncio
import contextlib
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from push1st.errors import ConfigError
from push1st.status import ServerStatus

MAX_CONNECTIONS = 16
"""the maximum number of commands that are served at the same time; further commands are rejected"""
MAX_COMMAND_BYTES = 65_536
MAX_ANSWER_BYTES = 1 << 24
COMMAND_SECONDS = 5
"""the time limit for a client to send its command"""
STATUS_SECONDS = 5
"""the time limit for the answer to a `StatusRequest`; workers have a second"""
NAME = "control"
"""the name of the socket; a short name, because the path of a Unix socket has at most 107 bytes"""


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Reads the configuration again, and applies it. `workers`: whether all workers are replaced in any case."""

    workers: bool = False


class StatusRequest(msgspec.Struct, frozen=True, tag=True):
    """Requests the state of the server."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """A step of a command that has not ended. `text`: a line for people."""

    text: str


class Result(msgspec.Struct, frozen=True, tag=True):
    """The end of a command.

    lines: the effects of the command, for people.
    problems: the reasons why the command failed; empty if it succeeded.
    """

    lines: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class StatusAnswer(msgspec.Struct, frozen=True, tag=True):
    """The state of the server."""

    status: ServerStatus


Command = Reload | StatusRequest
Report = Callable[[str], None]
"""a function that sends a line of progress"""
Answer = Callable[[Reload, Report], Awaitable[Result]]
"""a function that runs a command"""
ReadStatus = Callable[[], Awaitable[ServerStatus]]
"""a function that returns the state of the server"""

_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_answers: msgspec.json.Decoder[Step | Result | StatusAnswer] = msgspec.json.Decoder(Step | Result | StatusAnswer)


class ControlSocket:
    """The listening socket of a server.

    `folder`: the run folder. `answer`: the function that runs commands. `status`: the function that returns the state.
    """

    def __init__(self, folder: Path, answer: Answer, status: ReadStatus) -> None:
        self._path = folder / NAME
        self._answer = answer
        self._status = status
        self._server: asyncio.AbstractServer | None = None
        self._open = 0

    async def open(self) -> None:
        """Listens. Raises ConfigError."""
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_COMMAND_BYTES)
        except OSError as exc:
            raise ConfigError(f"cannot listen on the control socket {self._path}: {exc}; set TMPDIR to a short path") from exc

    def close(self) -> None:
        """Ends the listening. Commands that run go on."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(answer: Step | Result | StatusAnswer) -> None:
            writer.write(msgspec.json.encode(answer) + b"\n")

        self._open += 1
        try:
            try:
                command = _commands.decode(await asyncio.wait_for(reader.readline(), COMMAND_SECONDS))
            except (msgspec.DecodeError, ValueError, OSError, TimeoutError):
                send(Result(problems=("the server does not know this command: it runs another version of Push1st",)))
                return
            if self._open > MAX_CONNECTIONS:
                send(Result(problems=("the server is busy with other commands",)))
                return
            if isinstance(command, StatusRequest):
                send(StatusAnswer(await self._status()))
            else:
                send(await self._answer(command, lambda text: send(Step(text))))
        except asyncio.CancelledError:  # the server stops, and the command does not end
            return
        finally:
            self._open -= 1
            writer.close()


def send(folder: Path, command: Reload, report: Report) -> Result | None:
    """Sends a command to the server with this run folder, and waits for the end of the command.

    report: a function that takes each line of progress.
    Returns None if the server does not answer or has ended before the end of the command.
    """
    with contextlib.suppress(OSError, msgspec.DecodeError):
        for answer in _exchange(folder, command, None):
            if isinstance(answer, Result):
                return answer
            if isinstance(answer, Step):
                report(answer.text)
    return None


def read_status(folder: Path) -> ServerStatus | None:
    """Returns the state of the server with this run folder; None if the server does not answer in time."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        for answer in _exchange(folder, StatusRequest(), STATUS_SECONDS):
            return answer.status if isinstance(answer, StatusAnswer) else None
    return None


def _exchange(folder: Path, command: Command, seconds: float | None) -> Iterator[Step | Result | StatusAnswer]:
    """Sends a command and yields the answers. Raises OSError and DecodeError.

    seconds: the time limit for each answer; None: no limit.
    """
    path = folder / NAME
    if not stat.S_ISSOCK(path.lstat().st_mode):  # root connects to no socket to which another user has placed a link
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        client.sendall(msgspec.json.encode(command) + b"\n")
        with client.makefile("rb") as lines:
            while line := lines.readline(MAX_ANSWER_BYTES):
                yield _answers.decode(line)
