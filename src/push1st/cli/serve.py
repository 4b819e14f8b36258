"""`push1st serve`: runs one worker in this process, or a supervisor of several workers."""

import secrets
import sys

import msgspec

import push1st
from push1st import logs
from push1st.cli.arguments import Arguments
from push1st.cli.configuration import DEMO_URL, ENVIRONMENT, listening, load_or_demo, program, url
from push1st.config.console import NO_CONSOLE, exposed
from push1st.config.model import Config
from push1st.printable import printable_lines
from push1st.process import cpus

DEMO_PASSWORD_BYTES = 12
"""the random bytes of the password of the demo's console"""


def run(options: Arguments) -> int:
    """Serves until a signal stops the server. Raises ConfigError if the server cannot start."""

    demo_password = secrets.token_urlsafe(DEMO_PASSWORD_BYTES)

    def read() -> Config:
        config = with_demo_console(load_or_demo(options.config), demo_password, sys.stdout.isatty())
        if options.workers is None:
            return config
        server = msgspec.structs.replace(config.server, workers=options.workers)
        return msgspec.structs.replace(config, server=server, places=(*config.places, ("server.workers", "--workers")))

    config = read()
    source = options.config or ("the demo" if config.demo else ENVIRONMENT)
    logs.setup(config.log.format, config.log.level, sys.stderr)
    log = logs.get("push1st.server")
    log.info("starting", version=push1st.__version__, python=sys.version.split()[0], config=source)
    for warning in config.warnings:
        log.warning("configuration warning", warning=warning)
    count = cpus.worker_count(config)

    def started(config: Config, connections: int) -> None:
        if config.demo and config.log.format == "text" and config.server.listen and config.api.listen:
            print(printable_lines(demo_text(config, demo_password)), flush=True)
        for line in listening(config):
            log.info("listening", on=line)
        log.info("ready", apps=len(config.apps), workers=count, connections_possible=connections)

    if count > 1:
        from push1st.process import supervisor

        supervisor.run(read, config, options.config, started)
    else:
        from push1st.process import single

        single.run(read, config, options.config, started)
    return 0


def with_demo_console(config: Config, password: str, is_terminal: bool) -> Config:
    """Returns the demo with a console, if its text appears on a terminal of this machine; other configurations as they are.

    A file with the output, such as a log, must not contain a password. So the demo has no console if its output is a file.

    is_terminal: whether the output of the demo is a terminal.
    """
    console = config.console
    is_shown = config.demo and config.log.format == "text" and config.server.listen and config.api.listen and is_terminal
    if not is_shown or console.password or not console.listen or exposed(console) is not None:
        return config
    warnings = tuple(one for one in config.warnings if not one.endswith(NO_CONSOLE))
    return msgspec.structs.replace(config, console=msgspec.structs.replace(console, password=password), warnings=warnings)


def demo_text(config: Config, password: str) -> str:
    """Returns the text that the demo prints at its start: addresses, the app, and commands that publish and receive an event.

    password: the password of the console, if the demo has a console with this password.
    """
    app = config.apps[0]
    ws, api = url(config.server.listen[0], "ws"), url(config.api.listen[0], "http")
    options = ("" if ws == DEMO_URL else f" --url {ws}") + ("" if app.key == "app-key" else f" --key {app.key}")
    console = config.console
    page = f"    console     {url(console.listens[0], 'http')}   (password {password})\n" if console.password == password else ""
    bound = config.server.listen[0].host or "every interface"
    return f"""
  Push1st {push1st.__version__}, a demo: bound to {bound}, its secret is public. Not for production.

    WebSockets  {ws}/app/{app.key}   (Pusher; raw: /ws/app/{app.key}/CHANNEL)
    API         {api}{config.api.path}{app.id}/
    app         id {app.id} · key {app.key} · secret {app.secret}
{page}
  See a message arrive. Paste into a second terminal, line by line:

    {program()} subscribe my-channel{options} &
    sleep 1
    curl {api}{config.api.path}{app.id}/events -d '{{"name":"greeting","channels":["my-channel"],"data":"hello"}}'

  A configuration of your own: push1st serve -c server.yml. Stop with Ctrl-C.
"""
