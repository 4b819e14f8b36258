"""Defines the arguments of all commands for `argparse`. This module runs no command.

The parser of each command sets `run` to the name of the function that runs the command: `module:function`, in this package.
"""

import argparse
import os
import re
from difflib import get_close_matches
from typing import Any, NoReturn

import push1st
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

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = get_close_matches(value, action.choices, 1) if isinstance(value, str) else []
            if near:
                raise argparse.ArgumentError(action, f"did you mean {near[0]}?")
        super()._check_value(action, value)

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
        description="A realtime server: backends publish over HTTP; browsers and devices subscribe over the Pusher protocol, "
        "WebSockets, server-sent events or MQTT.",
        epilog="Begin with `push1st serve`: without a configuration it runs a demo on this machine only. "
        "`push1st init` writes a configuration.",
    )
    root.add_argument("--version", action="version", version=f"push1st {push1st.__version__}", help="print the version")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    _add_init(commands)
    _add_serve(commands)
    _add_reload(commands)
    _add_status(commands)
    _add_check(commands)
    _add_app(commands)
    _add_token(commands)
    _add_publish(commands)
    _add_subscribe(commands)
    _add_history(commands)
    _add_console(commands)
    _add_watch(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run="version:run")
    return root


def _add_init(commands: Any) -> None:
    init = commands.add_parser(
        "init",
        help="write a first configuration",
        description="Writes a configuration server.yml, and an app with a random key and secret, and prints the next commands. "
        "Overwrites no file.",
    )
    init.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="the folder (default: the current folder)")
    init.add_argument("--app", default="app", metavar="ID", help="the app's id, and the name of its file in apps/ (default: app)")
    init.set_defaults(run="init:run")


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve", help="run the server", description="Runs the server with a configuration, or a demo without one."
    )
    _config_option(serve, "the configuration file (server.yml); without it, a demo on 127.0.0.1 (or $PUSH1ST_CONFIG)")
    serve.add_argument(
        "--workers",
        type=workers,
        metavar="N|auto",
        help="the number of worker processes; auto: one for each core (default: server.workers, or 1)",
    )
    serve.set_defaults(run="serve:run")


def _add_reload(commands: Any) -> None:
    reload = commands.add_parser(
        "reload",
        help="make a running server read its configuration again",
        description="Makes a server on this machine read its configuration again, and waits for the result. Changes of apps, "
        "certificates and the log apply at once, and clients stay connected. For other changes, a server with several workers "
        "replaces its workers one by one, without rejecting a connection; a server with one worker changes nothing, and names "
        "the keys that need a restart. SIGHUP to the server's first process does the same. Root finds the servers of all users. "
        "Exit code 1: nothing was reloaded and the server runs as before, or the configuration is not applied on all workers.",
    )
    _config_option(reload, "the configuration file of the server to reload, if several run (or $PUSH1ST_CONFIG)")
    reload.add_argument(
        "--workers", action="store_true", help="replace all workers, even if the running workers could apply the changes"
    )
    reload.set_defaults(run="reload:run")


def _add_status(commands: Any) -> None:
    status = commands.add_parser(
        "status",
        help="show the state of a running server",
        description="Shows workers, connections, apps, broker, certificates, the last reload, and the origin of each key of the "
        "configuration. Finds the server on this machine, or requests the state from the API. Exit code 1: the server is not "
        "ready; 2: no server was found.",
    )
    _config_option(status, "the configuration file of the server, if several run (or $PUSH1ST_CONFIG)")
    status.add_argument("--api", metavar="URL", help="request the state from this API; this machine must be in its api.trust")
    _json_option(status, "print the state as JSON")
    status.set_defaults(run="status:run")


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="check a configuration",
        description="Checks a configuration and prints what would run. Exit code 1: the server would not start, would "
        "serve no client, or has a certificate that is not valid.",
    )
    _config_option(check, "the configuration file (or $PUSH1ST_CONFIG)")
    _json_option(check, "print errors, warnings and notes as JSON, with file, line and key")
    check.set_defaults(run="check:run")


def _add_app(commands: Any) -> None:
    app = commands.add_parser(
        "app",
        help="list, add, change or remove apps in the files of a configuration",
        description="Lists, adds, changes and removes apps in the files that `credentials` lists. A change keeps the comments of "
        "the file. If a file contains several apps, the command changes nothing, and prints the line that you must write. A new "
        "secret is printed once; an existing secret is never printed. `push1st reload` applies changes to a running server.",
        epilog="To rotate a secret without a rejected call: 1. `rotate`; 2. give the new secret to the receivers of webhooks, "
        "which accept both; 3. `push1st reload`; 4. give the new secret to the backends that sign; 5. wait until "
        'push1st_secret_used_total{place="1"} stops rising; 6. `retire`, and `push1st reload` again.',
    )
    actions = app.add_subparsers(required=True, metavar="ACTION")
    _app_action(actions, "list", "run_list", "list all apps", id=False, changes=False)
    _app_action(actions, "show", "run_show", "show an app, without its secrets", changes=False)
    add = _app_action(actions, "add", "run_add", "create the file of a new app, with a random key and secret")
    add.add_argument("--name", default="", help="the name of the app for people")
    add.add_argument(
        "--origin", action="append", metavar="ORIGIN", help="an origin whose pages may connect; repeatable (default: all)"
    )
    add.add_argument(
        "--channels",
        type=lambda text: text.split(","),
        metavar="TYPES",
        help="types of channels, such as public,private (default: all)",
    )
    _app_action(
        actions, "rotate", "run_rotate", "add a new secret, which signs after the next reload; the older secrets still verify"
    )
    _app_action(
        actions,
        "retire",
        "run_retire",
        "remove all secrets except the first; after the next reload, the server ends the connections that rely on them",
    )
    _app_action(actions, "enable", "run_enable", "enable an app again").set_defaults(enable=True)
    disable = "disable an app: after the next reload, the server rejects its clients and its API calls"
    _app_action(actions, "disable", "run_enable", disable).set_defaults(enable=False)
    remove = _app_action(actions, "remove", "run_remove", "delete the file of an app")
    remove.add_argument("--yes", action="store_true", help="delete the file; without this option nothing happens")
    remove.add_argument(
        "--purge",
        action="store_true",
        help="then reload the running server, and delete the app's MQTT sessions, retained messages and histories in the broker",
    )


def _app_action(
    actions: Any, name: str, function: str, text: str, *, id: bool = True, changes: bool = True
) -> argparse.ArgumentParser:
    """Adds an action of `push1st app`. `id`: whether the action takes an app's id. `changes`: whether it changes files."""
    verb, rest = text.split(" ", 1)
    action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{verb.capitalize()}s {rest}.")
    _config_option(action, "the configuration file (or $PUSH1ST_CONFIG)")
    action.add_argument("--json", action="store_true", help="print the result as JSON")
    if id:
        action.add_argument("id", metavar="ID", help="the id of the app")
    if changes:
        action.add_argument("--reload", action="store_true", help="then reload the running server, as `push1st reload` does")
    action.set_defaults(run=f"app:{function}", workers=False)
    return action


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="make or check a token offline",
        description="Makes the tokens that the API gives, without a server, and checks them.",
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
        "access",
        help="a token for raw WebSockets, event streams and MQTT",
        description="An access token: a JWT for raw WebSocket clients and event streams, and the password of MQTT clients.",
    )
    _app_options(access, key=False)
    access.add_argument(
        "--channel",
        action="append",
        help="a channel that the token allows; *: all channels; private-*: all with this prefix; repeatable (default: *)",
    )
    access.add_argument("--origin", default="*", help="the only Origin that may use the token (default: *, any)")
    access.add_argument("--ttl", type=int, default=0, metavar="SECONDS", help="until the token expires (default: 0, never)")
    access.add_argument(
        "--user",
        metavar="ID",
        help="the server signs in MQTT clients with this token as this user, such as the id of a device (default: none)",
    )
    access.set_defaults(run="token:run_access")
    check = kinds.add_parser(
        "check",
        help="report why the server accepts or rejects an access token",
        description="Checks app, signature, times, channels, origin and user of an access token. Exit code 1: the server would "
        "reject it. The answer contains neither the token nor a secret.",
    )
    _app_options(check, key=False, default="the app that the token names")
    check.add_argument("token", metavar="TOKEN", help="the access token, or - to read it from the standard input")
    check.add_argument("--channel", help="also check whether the token allows this channel")
    check.add_argument("--origin", help="also check whether a web page of this origin, such as https://shop.example, may use it")
    _json_option(check, "print the result as JSON")
    check.set_defaults(run="tokencheck:run")


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


def _add_console(commands: Any) -> None:
    console = commands.add_parser("console", help="prepare the console for operators")
    actions = console.add_subparsers(required=True, metavar="ACTION")
    password = actions.add_parser(
        "password",
        help="make the hash of a password",
        description="Reads a password, twice from a terminal or once from the standard input, and prints its hash for "
        "console.password in the configuration.",
    )
    password.set_defaults(run="console:run_password")


def _add_watch(commands: Any) -> None:
    watch = commands.add_parser(
        "watch",
        help="show what happens on all workers",
        description="Prints what happens on all workers and machines, as the inspector of the console does: an event is a line "
        "of JSON. Without options it prints all events. The password of the console is $PUSH1ST_CONSOLE_PASSWORD, or that of the "
        "configuration, or it is typed. A lost connection is opened again.",
        epilog="KINDS: connected, disconnected, subscribed, unsubscribed, signed-in, published, client-event, refused, cut-off, "
        'webhook-delivered, webhook-failed, asked. A line {"dropped": {KIND: N}} counts the events that were left out, because '
        "more than 2000 events a second happened on a worker. Exit codes: 0 after --count events; 1: the console was not "
        "reached, or it rejected the password or the filter; 130: Ctrl-C.",
    )
    _config_option(watch, "take the address and the origin of the console from this configuration (or $PUSH1ST_CONFIG)")
    watch.add_argument("--url", help="the console (default: that of the configuration, or http://127.0.0.1:6003)")
    watch.add_argument("--app", help="only events of this app")
    watch.add_argument(
        "--channel", metavar="NAME", help="only events on channels that begin with NAME; with *: on channels that match NAME"
    )
    watch.add_argument(
        "--what", type=lambda text: text.split(","), metavar="KINDS", help="only these kinds of events, with commas between"
    )
    watch.add_argument(
        "--socket", metavar="ID", help="only events of this connection: its socket id, client id (MQTT) or session prefix"
    )
    watch.add_argument("--user", metavar="ID", help="only events of this user")
    watch.add_argument("--ip", metavar="ADDRESS", help="only events of clients at this address")
    watch.add_argument("--data", action="store_true", help="also show the data of published events, at most 2 KB of each")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="stop after so many events (default: never)")
    watch.set_defaults(run="watch:run")


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


def _json_option(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--json", action="store_true", help=text)


def _app_options(command: argparse.ArgumentParser, key: bool = True, default: str = "the only app of the configuration") -> None:
    """Adds the options that select an app and its secret; if `key` is true, also the option for the app's key.

    `default`: the app that the command selects without the option `--app`.
    """
    taken = "app's key and secret, and the server's address," if key else "app's secret"
    _config_option(command, f"take the {taken} from this configuration (or $PUSH1ST_CONFIG; default: the demo app)")
    command.add_argument("--app", help=f"the app's id (default: {default})")
    if key:
        command.add_argument("--key", help="the app's key, in place of the one in the configuration")
    command.add_argument("--secret", help="the app's secret, in place of the one in the configuration (or $PUSH1ST_APP_SECRET)")
