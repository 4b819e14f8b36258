"""Defines the arguments of all commands for `argparse`. This module runs no command.

The parser of each command sets `run` to the name of the function that runs the command: `module:function`, in this package.
"""

import argparse
import os
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from push1st.cli.configuration import DEMO_API, DEMO_URL
from push1st.positions import Position
from push1st.process.cpus import MAX_WORKERS

Arguments = argparse.Namespace
MAX_DIGITS = 9
_API_HELP = f"the server's API (default: that of the configuration, or {DEMO_API})"
_OPTION = re.compile(r"--[a-z][a-z-]{0,30}(?=\Z|=)|-[a-z]\Z")


class Parser(argparse.ArgumentParser):
    """A parser that rejects unknown arguments, and then prints the usage of the subcommand.

    The error contains only the names of unknown options. `argparse` would also print other arguments, perhaps a secret.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._reject(unknown)
        return found, unknown

    def _reject(self, unknown: list[str]) -> NoReturn:
        names = [match[0] for text in unknown if (match := _OPTION.match(text))]
        if not names:
            files = "--config" in self._option_string_actions and not self._get_positional_actions()
            advice = "give the configuration file with -c FILE" if files else "put text with spaces in quotes"
            self.error(f"too many arguments; {advice}")
        near = get_close_matches(names[0], self._option_string_actions, 1)
        self.error(f"unknown option {names[0]}" + (f", did you mean {near[0]}?" if near else ""))


def parser() -> argparse.ArgumentParser:
    """Returns the parser for the arguments of all commands."""
    root = Parser(
        prog="push1st",
        description="A realtime server: backends publish over HTTP, browsers and devices listen by Pusher protocol or WebSocket.",
        epilog="Begin with `push1st serve`: without a configuration it runs a demo on this machine only.",
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_reload(commands)
    _add_check(commands)
    _add_token(commands)
    _add_publish(commands)
    _add_subscribe(commands)
    _add_history(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run="version:run")
    return root


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve", help="run the server", description="Runs the server with a configuration, or a demo without one."
    )
    _config_option(serve, "the configuration file (server.yml); without it, a demo on 127.0.0.1 (or $PUSH1ST_CONFIG)")
    serve.add_argument(
        "--workers",
        type=workers,
        metavar="N|auto",
        help="how many worker processes, auto: one a core (default: server.workers, 1)",
    )
    serve.set_defaults(run="serve:run")


def _add_reload(commands: Any) -> None:
    reload = commands.add_parser(
        "reload",
        help="make a running server read its configuration again",
        description="Makes a server with several workers on this machine read its configuration again and replace its workers "
        "one by one, without rejecting a connection. Ends when all workers are replaced. SIGHUP to the server's first process "
        "does the same. Root finds the servers of all users. Exit code 1: nothing was reloaded and the server runs as before, "
        "or a worker did not start.",
    )
    _config_option(reload, "the configuration file of the server to reload, if several run (or $PUSH1ST_CONFIG)")
    reload.set_defaults(run="reload:run")


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="check a configuration",
        description="Checks a configuration and prints what would run. Exit code 1: the server would not start, or would "
        "serve no client.",
    )
    _config_option(check, "the configuration file (or $PUSH1ST_CONFIG)")
    check.set_defaults(run="check:run")


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token", help="make a token offline", description="Makes the tokens that the API gives, without a server."
    )
    kinds = token.add_subparsers(required=True, metavar="KIND")
    session = kinds.add_parser(
        "session",
        help="authorise a private, presence or protected channel",
        description="A session token: `auth` for a Pusher subscription.",
    )
    _app_options(session, key=False)
    session.add_argument("socket_id", help="the connection's id, such as 123.456")
    session.add_argument("channel", help="the channel, such as private-user.1")
    session.add_argument("data", nargs="?", default="", help="channel_data of a presence channel, as the client sends it")
    session.set_defaults(run="token:run_session")
    access = kinds.add_parser(
        "access", help="a bearer token for raw WebSockets", description="An access token: a JWT for raw WebSocket connections."
    )
    _app_options(access, key=False)
    access.add_argument(
        "--channel",
        action="append",
        help="a channel that the token allows; `*` is all, a trailing * a prefix; repeatable (default: *)",
    )
    access.add_argument("--origin", default="*", help="the only Origin that may use the token (default: *, any)")
    access.add_argument("--ttl", type=int, default=0, metavar="SECONDS", help="until the token expires (default: 0, never)")
    access.set_defaults(run="token:run_access")


def _add_publish(commands: Any) -> None:
    publish = commands.add_parser(
        "publish", help="publish an event", description="Publishes an event over HTTP and prints the answer."
    )
    publish.add_argument("channel", help="the channel, or several with commas between")
    publish.add_argument("event", help="the event's name")
    publish.add_argument(
        "data",
        nargs="?",
        default="",
        help="the event's data: sent as JSON if it is valid JSON, else as a string (default: empty)",
    )
    _app_options(publish)
    publish.add_argument("--api", help=_API_HELP)
    publish.add_argument(
        "--idempotency-key",
        metavar="KEY",
        help="an event with the same key is published once to each channel, even if this command is repeated within 5 minutes",
    )
    publish.set_defaults(run="publish:run")


def _add_subscribe(commands: Any) -> None:
    subscribe = commands.add_parser(
        "subscribe", help="show events", description="Subscribes to channels and prints every event as a line."
    )
    subscribe.add_argument("channel", nargs="+", help="channels; all except public channels need the app's secret")
    _app_options(subscribe)
    subscribe.add_argument("--url", help=f"the server (default: that of the configuration, or {DEMO_URL})")
    subscribe.add_argument("--count", type=int, default=0, metavar="N", help="stop after so many events (default: never)")
    subscribe.add_argument(
        "--since",
        metavar="POSITION",
        type=positions,
        help="first show the events after this position, which `push1st history` prints; several channels: one position or - "
        "for each, with commas between",
    )
    subscribe.add_argument(
        "--rewind",
        metavar="N|Ns",
        type=rewind,
        help="first show the last N events of each channel, or those of the last N seconds, such as 30s; with --since: only if "
        "the position is not valid any more",
    )
    subscribe.set_defaults(run="subscribe:run")


def _add_history(commands: Any) -> None:
    history = commands.add_parser(
        "history",
        help="show the kept events of a channel",
        description="Prints the kept events of a channel, a line each: position, name, data. The app's configuration needs a "
        "section `history` for the channel.",
    )
    history.add_argument("channel", help="the channel")
    _app_options(history)
    history.add_argument("--api", help=_API_HELP)
    history.add_argument("--since", default="", metavar="POSITION", help="show only the events after this position")
    history.add_argument("--limit", type=whole, default=100, metavar="N", help="stop after so many events (default: 100)")
    history.add_argument(
        "--reverse", action="store_true", help="show the latest events first; with --since: the events before this position"
    )
    history.set_defaults(run="history:run")


def workers(text: str) -> int | str:
    """Reads the value of `--workers`. Raises ArgumentTypeError."""
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number from 1 to {MAX_WORKERS}, or auto")
    return int(text)


def whole(text: str) -> int:
    """Reads a whole number from 1 on. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS or not int(text):
        raise argparse.ArgumentTypeError(f"found {text[:80]!r}, allowed: a whole number from 1 on")
    return int(text)


def rewind(text: str) -> str:
    """Reads the value of `--rewind`. Raises ArgumentTypeError."""
    try:
        whole(text.removesuffix("s"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"found {text[:80]!r}, allowed: a number of events, or seconds such as 30s") from None
    return text


def positions(text: str) -> list[str]:
    """Reads the value of `--since`. Raises ArgumentTypeError."""
    found = text.split(",")
    for one in found:
        try:
            if one != "-":
                Position.parse(one)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"found {one[:80]!r}, allowed: {exc}") from None
    return found


def _config_option(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-c", "--config", metavar="FILE", default=os.environ.get("PUSH1ST_CONFIG"), help=text)


def _app_options(command: argparse.ArgumentParser, key: bool = True) -> None:
    """Adds the options that select an app and its secret; if `key` is true, also the option for the app's key."""
    taken = "app's key and secret, and the server's address," if key else "app's secret"
    _config_option(command, f"take the {taken} from this configuration (or $PUSH1ST_CONFIG; default: the demo app)")
    command.add_argument("--app", help="the app's id (default: the only app of the configuration)")
    if key:
        command.add_argument("--key", help="the app's key, in place of the one in the configuration")
    command.add_argument("--secret", help="the app's secret, in place of the one in the configuration (or $PUSH1ST_APP_SECRET)")
