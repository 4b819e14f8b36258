"""The command line: serve · reload · check · token · publish · subscribe · version.

What only one command needs is imported by it: the supervisor of several workers is this process, and should be small.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import push1st
from push1st import logs
from push1st.channels import covers, kind_of, pusher_name_error, wide_name_error
from push1st.config import load as configfile
from push1st.config.model import DEMO_SECRET, AppConfig, Config, Listen, strictness, unserved
from push1st.errors import ClientError, ConfigError, Refused, Rejected
from push1st.printable import printable, printable_lines
from push1st.process import rundir, supervisor

DEMO_URL = "ws://127.0.0.1:6001"
DEMO_API = "http://127.0.0.1:6002"
_OPTION = re.compile(r"--[a-z][a-z-]{0,30}(?=\Z|=)|-[a-z]\Z")
_SOCKET_ID = re.compile(r"([A-Za-z0-9_-]+\.)?[0-9]+(\.[0-9]+)?")


class _Parser(argparse.ArgumentParser):
    """Rejects unknown arguments with the usage of the subcommand.

    The error names options only: argparse would repeat the rest too, and a secret may be in it.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 (it failed) or 2 (it was called wrongly)."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (ClientError, Refused) as exc:
        print(printable(exc.text if isinstance(exc, Refused) else str(exc)), file=sys.stderr)
        return 1
    except ConfigError as exc:
        print(printable_lines(str(exc)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads what is printed has enough of it, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="push1st",
        description="A realtime server: backends publish over HTTP, browsers and devices listen by Pusher protocol or WebSocket.",
        epilog="Begin with `push1st serve`: without a configuration it runs a demo on this machine only.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="run the server", description="Runs the server with a configuration, or a demo without one."
    )
    _config_option(serve, "the configuration file (server.yml); without it, a demo on 127.0.0.1 (or $PUSH1ST_CONFIG)")
    serve.add_argument(
        "--workers",
        type=_workers,
        metavar="N|auto",
        help="how many worker processes, auto: one a core (default: server.workers, 1)",
    )
    serve.set_defaults(run=_serve)

    reload = commands.add_parser(
        "reload",
        help="make a running server read its configuration again",
        description="Makes a server with several workers on this machine read its configuration again and replace its workers "
        "one by one, without rejecting a connection. Ends when all workers are replaced. SIGHUP to the server's first process "
        "does the same. Root finds the servers of all users. Exit code 1: nothing was reloaded and the server runs as before, "
        "or a worker did not start.",
    )
    _config_option(reload, "the configuration file of the server to reload, if several run (or $PUSH1ST_CONFIG)")
    reload.set_defaults(run=_reload)

    check = commands.add_parser(
        "check",
        help="check a configuration",
        description="Checks a configuration and prints what would run. Exit code 1: the server would not start, or would "
        "serve no client.",
    )
    _config_option(check, "the configuration file (or $PUSH1ST_CONFIG)")
    check.set_defaults(run=_check)

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
    session.set_defaults(run=_session_token)
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
    access.set_defaults(run=_access_token)

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
    publish.add_argument("--api", help=f"the server's API (default: that of the configuration, or {DEMO_API})")
    publish.set_defaults(run=_publish)

    subscribe = commands.add_parser(
        "subscribe", help="show events", description="Subscribes to channels and prints every event as a line."
    )
    subscribe.add_argument("channel", nargs="+", help="channels; all except public channels need the app's secret")
    _app_options(subscribe)
    subscribe.add_argument("--url", help=f"the server (default: that of the configuration, or {DEMO_URL})")
    subscribe.add_argument("--count", type=int, default=0, metavar="N", help="stop after so many events (default: never)")
    subscribe.set_defaults(run=_subscribe)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    return parser


def _workers(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= supervisor.MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number from 1 to {supervisor.MAX_WORKERS}, or auto")
    return int(text)


def _config_option(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", default=os.environ.get("PUSH1ST_CONFIG"), help=text)


def _app_options(parser: argparse.ArgumentParser, key: bool = True) -> None:
    taken = "app's key and secret, and the server's address," if key else "app's secret"
    _config_option(parser, f"take the {taken} from this configuration (or $PUSH1ST_CONFIG; default: the demo app)")
    parser.add_argument("--app", help="the app's id (default: the only app of the configuration)")
    if key:
        parser.add_argument("--key", help="the app's key, in place of the one in the configuration")
    parser.add_argument("--secret", help="the app's secret, in place of the one in the configuration (or $PUSH1ST_APP_SECRET)")


# serve and check


ENVIRONMENT = "the environment"
"""names the configuration of a server without a file, in the log and in `check`"""


def _load(file: str | None) -> Config:
    return configfile.load(Path(file), os.environ) if file else configfile.demo(os.environ)


def _serve(options: argparse.Namespace) -> int:
    def load() -> Config:
        config = _load(options.config)
        if options.workers is None:
            return config
        return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, workers=options.workers))

    config = load()
    source = options.config or ("the demo" if config.demo else ENVIRONMENT)
    logs.setup(config.log.format, config.log.level, sys.stderr)
    log = logs.get("push1st.server")
    log.info("starting", version=push1st.__version__, python=sys.version.split()[0], config=source)
    for warning in config.warnings:
        log.warning(warning)
    count = supervisor.wanted(config)

    def started(config: Config, connections: int) -> None:
        if config.demo and config.log.format == "text" and config.server.listen and config.api.listen:
            print(printable_lines(_demo_text(config)), flush=True)
        for line in _listening(config):
            log.info(line)
        log.info("ready", apps=len(config.apps), workers=count, connections_possible=connections)

    if count > 1:
        supervisor.run(load, config, options.config, started)
    else:
        from push1st.process import server

        server.run(config, started)
    return 0


def _reload(options: argparse.Namespace) -> int:
    found = rundir.running(options.config)
    if len(found) != 1:
        which = f" with {options.config}" if options.config else ""
        whose = "this user" if os.getuid() else "any user"
        if found:
            pids = ", ".join(map(str, found))
            print(f"push1st reload: several servers run{which}: {pids}. Say which: -c FILE, or kill -HUP PID", file=sys.stderr)
        else:
            print(
                f"push1st reload: nothing was reloaded: no server of {whose} with several workers runs{which}. "
                "One worker cannot be replaced while it serves: restart it",
                file=sys.stderr,
            )
        return 1
    ((process, folder),) = found.items()
    before = rundir.reloads(folder)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGHUP)
    print(f"the server {process} reads its configuration", flush=True)
    accepted = False
    while (now := rundir.reloads(folder)) is not None and before is not None:
        # A reload that began before the signal may have read the old configuration.
        if now.accepted > before.begun and not accepted:
            accepted = True
            print("the configuration is good: workers are replaced one by one, each drains for server.drain seconds", flush=True)
        if now.ended > before.begun:
            for problem in now.problems:
                print(f"push1st reload: {printable(problem)}", file=sys.stderr)
            if now.problems:
                return 1
            print(f"reloaded: {now.workers} worker{'s' * (now.workers != 1)}")
            return 0
        time.sleep(0.1)
    print(f"push1st reload: the server {process} has ended meanwhile", file=sys.stderr)
    return 1


def _check(options: argparse.Namespace) -> int:
    config = _load(options.config)
    if config.demo:
        print("push1st check: which configuration? Give it with -c FILE, or by PUSH1ST_APP_ID.", file=sys.stderr)
        return 2
    from push1st.cli import preflight

    source = options.config or ENVIRONMENT
    lines = [*_listening(config), *_spread(config)]
    mistakes = preflight.mistakes(config)
    if reason := unserved(config):
        mistakes.append(f"{source}: {reason}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    print(f"{source}: good")
    for line in lines:
        print(f"  {printable(line)}")
    for app in config.apps:
        state = "" if app.enable else "  (disabled)"
        print(printable(f"  app {app.id}  key {app.key}  channels {', '.join(sorted(app.channels))}{state}"))
        for line in _backends(app):
            print(f"    {printable(line)}")
    for note in (*config.warnings, *strictness(config), *_uncallable(config), *preflight.notes(config)):
        print(f"  note: {printable(note)}")
    return 0


def _listening(config: Config) -> list[str]:
    scheme = "wss" if config.server.ssl.enable else "ws"
    protocols = " and ".join(sorted(config.server.proto - {"mqtt"}))
    lines = [f"WebSockets ({protocols}) and signed API calls on {_shown(address, scheme)}" for address in config.server.listen]
    scheme = "https" if config.api.ssl.enable else "http"
    trusted = ", ".join(str(net) for net in config.api.trust.nets) + (", unix" if config.api.trust.unix else "")
    access = f"{config.api.path}, unsigned calls from {trusted or 'nobody'}; WebSockets too"
    return lines + [f"API on {_shown(address, scheme)}{access}" for address in config.api.listen]


def _spread(config: Config) -> list[str]:
    """Over what it is spread, where that is more than one process. Raises ConfigError where workers lack an engine."""
    from push1st.config import brokerurl
    from push1st.process import engine

    count = supervisor.wanted(config)
    lines = [f"{count} workers"] if count > 1 else []
    if count > 1 and not config.has_broker:
        lines += [f"between them: {engine.program(config.broker)}"]
    return lines + ([f"broker: {brokerurl.parse(config.broker).all}"] if config.has_broker else [])


def _backends(app: AppConfig) -> list[str]:
    """Who is told, and who is asked. Imported here: only `check` needs it."""
    from push1st.hooks import shown

    lines = [f"tells {shown(one.url)} of {', '.join(one.events) or 'all events'}" for one in app.webhooks]
    if app.hook is not None:
        lines += [f"tells {shown(url)} of {', '.join(sorted(app.hook.trigger))}" for url in app.hook.endpoint]
    return lines + [f"asks {shown(one.url)} on {', '.join(sorted(one.on))}" for one in app.authorize]


def _uncallable(config: Config) -> list[str]:
    """Functions and scripts that apps name and that cannot be called: a line each. What they import runs."""
    from push1st.hooks.processes import problem

    named = {
        (app.id, url)
        for app in config.apps
        if app.enable
        for url in (
            *(one.url for one in app.webhooks),
            *(one.url for one in app.authorize),
            *(app.hook.endpoint if app.hook else ()),
        )
        if url.startswith(("py://", "lua://"))
    }
    found = ((app, url, problem(url, config.folder)) for app, url in sorted(named))
    return [f"{app}: {url} cannot be called: {why}" for app, url, why in found if why]


def _shown(address: Listen, scheme: str) -> str:
    if address.scheme == "unix":
        return str(address)
    host = address.host or "*"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def _demo_text(config: Config) -> str:
    app = config.apps[0]
    ws, api = config.server.listen[0], config.api.listen[0]
    where = "" if _shown(ws, "ws") == DEMO_URL else f" --url {_shown(ws, 'ws')}"
    who = "" if app.key == "app-key" else f" --key {app.key}"
    return f"""
  Push1st {push1st.__version__}, a demo: bound to {ws.host or "every interface"}, its secret is public. Not for production.

    WebSockets  {_shown(ws, "ws")}/app/{app.key}   (Pusher; raw: /ws/app/{app.key}/CHANNEL)
    API         {_shown(api, "http")}{config.api.path}{app.id}/
    app         id {app.id} · key {app.key} · secret {app.secret}

  See a message arrive. Paste into a second terminal, line by line:

    {_command()} subscribe my-channel{where}{who} &
    sleep 1
    curl {_shown(api, "http")}{config.api.path}{app.id}/events -d '{{"name":"greeting","channels":["my-channel"],"data":"hello"}}'

  A configuration of your own: push1st serve -c server.yml. Stop with Ctrl-C.
"""


def _command() -> str:
    """How this command was called, to call it again."""
    return "push1st" if "/" not in sys.argv[0] or sys.argv[0].endswith(".py") else sys.argv[0]


# token, publish, subscribe, version


class _Target(msgspec.Struct, frozen=True):
    """An app, and the configuration of its server. assumed: no option selects the app, so it is the demo's."""

    config: Config
    app: AppConfig
    assumed: bool


def _target(options: argparse.Namespace) -> _Target:
    """Returns the app that the options select. Options win over the environment, which wins over the configuration."""
    config = _load(options.config)
    apps = {app.id: app for app in config.apps}
    key = getattr(options, "key", None)
    name = options.app or (next(iter(apps)) if len(apps) == 1 else "")
    app = apps.get(name)
    if app is None and name and (key or options.secret or not options.config):  # an app of another server
        app = AppConfig(id=name, key="", secret=os.environ.get("PUSH1ST_APP_SECRET", ""))
    if app is None:
        problem = f"there is no app {name} in {options.config}." if name else "which app?"
        raise ConfigError(f"{problem} Select one with --app: {', '.join(apps) or 'the configuration has none'}")
    if config.demo and key not in (None, app.key):  # the demo's secret does not belong to another key
        app = msgspec.structs.replace(app, secret="")
    assumed = not (options.config or options.app or key or os.environ.get("PUSH1ST_APP_ID"))
    return _Target(config, msgspec.structs.replace(app, key=key or app.key, secret=options.secret or app.secret), assumed)


def _signer(options: argparse.Namespace) -> tuple[str, str]:
    """Returns id and secret of the app that a token is for. Prints a note if it is the demo's, because no option selects one."""
    target = _target(options)
    app = target.app
    if not app.secret:
        raise ConfigError(f"app {app.id} has no secret, so it has no tokens: select an app with -c FILE, or give --secret")
    if target.assumed:
        secret = "its public secret" if app.secret == DEMO_SECRET else "the given secret"
        another = "-c FILE, or --app with --secret"
        print(f"note: a token for the demo's app {app.id}, signed with {secret}; for another app: {another}", file=sys.stderr)
    return app.id, app.secret


def _session_token(options: argparse.Namespace) -> int:
    from push1st import auth

    session, channel = options.socket_id, options.channel
    if not _SOCKET_ID.fullmatch(session):
        swapped = "; it comes before the channel" if _SOCKET_ID.fullmatch(channel) else ""
        raise ConfigError(f"found the socket id {session!r}, allowed: the id of a connection, such as 123.456{swapped}")
    if not kind_of(channel).needs_auth:
        raise ConfigError(
            f"found the public channel {channel!r}, allowed: private-…, presence-… or protected-…; others need no token"
        )
    print(auth.session_token(_signer(options)[1], session, channel, options.data))
    return 0


def _access_token(options: argparse.Namespace) -> int:
    from push1st import auth

    channels = options.channel or ["*"]
    for name in channels:
        if error := wide_name_error(name):
            raise ConfigError(error)
    app, secret = _signer(options)
    print(
        auth.access_token(
            secret, app, options.origin, channels[0] if len(channels) == 1 else channels, options.ttl, int(time.time())
        )
    )
    return 0


def _publish(options: argparse.Namespace) -> int:
    from push1st.cli import client

    target = _target(options)
    config, app = target.config, target.app
    # An unsigned call is answered with the number of subscribers, but only where the server trusts the caller: the demo does.
    signed = options.secret or os.environ.get("PUSH1ST_APP_SECRET") or not config.demo
    if signed and app.secret and not app.key:
        raise ConfigError(f"app {app.id} has no key here: give it with -c FILE or --key")
    try:
        data = json.loads(options.data)
    except ValueError:
        data = options.data
    channels = options.channel.split(",")
    api = _address(config, "http") if options.api is None else options.api
    with _hint(target):
        answer = client.publish(
            api, config.api.path, app.id, app.key, app.secret if signed else "", channels, options.event, data
        )
    print(printable(answer))
    for name in channels:
        if note := _unreachable(app, name):
            print(printable(f"note: {note}"), file=sys.stderr)
    return 0


def _unreachable(app: AppConfig, name: str) -> str:
    """Returns why no client, or no Pusher client, can subscribe to a channel; "" if they can."""
    kind = kind_of(name)
    if not covers(app.channels, kind):
        return f"nobody can subscribe to {name}: app {app.id} has no {kind.type} channels, only {', '.join(sorted(app.channels))}"
    error = pusher_name_error(name)
    return f"only raw WebSocket clients can subscribe to {name}: {error}" if error else ""


def _subscribe(options: argparse.Namespace) -> int:
    from push1st.cli import client

    target = _target(options)
    config, app = target.config, target.app
    if not app.key:
        raise ConfigError(f"app {app.id} has no key here: give it with -c FILE or --key")

    def show(channel: str, event: str, data: str) -> None:
        print(*map(printable, (channel, event, data)), sep="  ", flush=True)

    def ready() -> None:
        print(f"subscribed to {printable(', '.join(options.channel))} (Ctrl-C ends)", file=sys.stderr, flush=True)

    url = _address(config, "ws") if options.url is None else options.url
    with _hint(target):
        client.subscribe(url, config.server.app_path, app.key, app.secret, options.channel, show, ready, options.count)
    return 0


def _address(config: Config, scheme: str) -> str:
    """Returns the URL at which this machine reaches the server of a configuration. scheme: http or ws."""
    api = scheme == "http" and any(one.scheme == "tcp" for one in config.api.listen)
    part = config.api if api else config.server
    for one in part.listen:
        if one.scheme == "tcp":
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(one.host, one.host)  # noqa: S104 - is not bound
            return _shown(msgspec.structs.replace(one, host=host), scheme + "s" * part.ssl.enable)
    raise ConfigError(
        f"the configuration has no TCP address to connect to: give one with {'--api' if scheme == 'http' else '--url'}"
    )


@contextlib.contextmanager
def _hint(target: _Target) -> Iterator[None]:
    """Adds to a rejection that the demo's app was used, if no option selects an app."""
    try:
        yield
    except Rejected as exc:
        if not target.assumed:
            raise
        another = "for another app: -c FILE, or --app with --key and --secret"
        raise Rejected(f"{exc}; this is the demo's app {target.app.id} with the key {target.app.key}, {another}") from exc


def _version(_options: argparse.Namespace) -> int:
    print(f"push1st {push1st.__version__} (Python {sys.version.split()[0]})")
    return 0
