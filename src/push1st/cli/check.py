"""`push1st check`: checks a configuration without starting the server, and prints the configured listeners and apps."""

import sys

from push1st.cli import preflight, retention
from push1st.cli.arguments import Arguments
from push1st.cli.configuration import ENVIRONMENT, listening, load_or_demo
from push1st.config import brokerurl
from push1st.config.model import AppConfig, Config, strictness, unserved
from push1st.errors import ConfigError
from push1st.hooks import shown
from push1st.hooks.processes import problem
from push1st.printable import printable
from push1st.process import cpus, engine


def run(options: Arguments) -> int:
    """Prints listeners, apps and notes. Raises ConfigError if the server would not start or could serve no client."""
    config = load_or_demo(options.config)
    if config.demo:
        print(
            "push1st check: which configuration? Give it with -c FILE, by PUSH1ST_CONFIG, or by PUSH1ST_APP_ID.", file=sys.stderr
        )
        return 2
    source = options.config or ENVIRONMENT
    lines = [*listening(config), *_processes(config)]
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
        for line in (*retention.lines(app), *_backends(app)):
            print(f"    {printable(line)}")
    for note in (*config.warnings, *strictness(config), *retention.notes(config), *_uncallable(config), *preflight.notes(config)):
        print(f"  note: {printable(note)}")
    return 0


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
