"""`push1st check`: checks a configuration without starting the server, and prints the configured listeners and apps."""

import sys
from collections.abc import Iterator

import msgspec

import push1st
from push1st.cli import preflight
from push1st.cli.arguments import Arguments
from push1st.cli.configuration import ENVIRONMENT, listening, load_or_demo
from push1st.cli.findings import Finding, divided
from push1st.config import brokerurl
from push1st.config.model import AppConfig, Config, all_disabled, strictness, unserved, weak_secrets
from push1st.errors import ConfigError
from push1st.hooks import shown
from push1st.hooks.processes import problem
from push1st.notes import mqtt, notes, retention
from push1st.printable import printable, printable_json
from push1st.process import cpus, engine


class CheckAnswer(msgspec.Struct, frozen=True):
    """The answer of `push1st check --json`.

    version: the version of this package.
    source: the configuration file as the command names it, or `the environment`.
    good: whether the server would start and could serve clients.
    findings: the errors, or else the warnings and notes.
    """

    version: str
    source: str
    good: bool
    findings: list[Finding]


def run(options: Arguments) -> int:
    """Prints listeners, apps and notes. Raises ConfigError if the server would not start or could serve no client.

    With `--json`, prints a `CheckAnswer` in both cases, and returns 1 for an error.
    """
    source = options.config or ENVIRONMENT
    try:
        config = load_or_demo(options.config)
        if config.demo:
            print(
                "push1st check: which configuration? Give it with -c FILE, by PUSH1ST_CONFIG, or by PUSH1ST_APP_ID.",
                file=sys.stderr,
            )
            return 2
        lines = _summary(config, source)
    except ConfigError as exc:
        if not options.json:
            raise
        return _print_json(source, divided("error", str(exc).split("\n"), source=source))
    found = (*strictness(config), *weak_secrets(config), *notes(config), *_uncallable(config), *preflight.notes(config))
    if options.json:
        ids = {app.id for app in config.apps}
        return _print_json(source, [*divided("warning", config.warnings, ids, source), *divided("note", found, ids, source)])
    for line in (*lines, *(f"  note: {note}" for note in (*config.warnings, *found))):
        print(printable(line))
    return 0


def _print_json(source: str, findings: list[Finding]) -> int:
    """Prints the findings as JSON; returns the exit code of the command."""
    good = all(one.level != "error" for one in findings)
    print(printable_json(CheckAnswer(push1st.__version__, source, good, findings)))
    return 0 if good else 1


def _summary(config: Config, source: str) -> list[str]:
    """Returns lines about listeners and apps. Raises ConfigError if the server would not start or could serve no client."""
    found = [*listening(config), *mqtt.lines(config), *_processes(config)]
    mistakes = preflight.mistakes(config)
    if (reason := unserved(config)) and not all_disabled(config):
        mistakes.append(f"{source}: {reason}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return [f"{source}: good", *(f"  {line}" for line in found), *(line for app in config.apps for line in _app(app))]


def _app(app: AppConfig) -> Iterator[str]:
    """Yields lines about an app."""
    state = "" if app.enable else "  (disabled)"
    yield f"  app {app.id}  key {app.key}  channels {', '.join(sorted(app.channels))}{state}"
    yield from (f"    {line}" for line in (*retention.lines(app), *_backends(app)))


def _processes(config: Config) -> list[str]:
    """Returns lines about workers, engine and broker. Raises ConfigError if the workers need an engine that is not installed."""
    count = cpus.worker_count(config)
    lines = [f"{count} workers"] if count > 1 else []
    if count > 1 and not config.has_broker:
        lines += [f"between them: {engine.program(config.broker)}"]
    return lines + ([f"broker: {brokerurl.parse(config.broker).all}"] if config.has_broker else [])


def _backends(app: AppConfig) -> list[str]:
    """Returns a line for each endpoint that receives hook events of the app or makes decisions for the app."""
    lines = [f"tells {shown(one.url)} of {', '.join(one.events) or 'all events'}" for one in app.webhooks]
    if app.hook is not None:
        lines += [f"tells {shown(url)} of {', '.join(sorted(app.hook.trigger))}" for url in app.hook.endpoint]
    return lines + [f"asks {shown(one.url)} on {', '.join(sorted(one.on))}" for one in app.authorize]


def _uncallable(config: Config) -> list[str]:
    """Loads the Python functions and Lua scripts of the hooks; returns a line for each URL that the server cannot call."""
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
