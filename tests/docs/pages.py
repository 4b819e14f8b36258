"""Reads the pages of the documentation and runs them: writes their files, runs their commands, compares the answers.

The test runs the blocks of a page from top to bottom, in one folder that is empty at first. The opening fence of a block names
the kind of the block after its language, where Markdown does not show it:

    ```yaml file=server.yml      a file; a configuration is checked with `push1st check` at the end of the page
    ```bash                      run to its end; must succeed
    ```bash fails                run to its end; must fail
    ```bash background           started, and stopped at the end of the page
    ```bash restart              the same, after the background commands are stopped
    ```json answer               the output of the last command; `…` matches anything, and a number over 9999 matches any number
    ```text answer               the same, word by word
    ```text shows                the output so far of the last background command
    ```js browser                run by Node.js with the objects of a browser
    ```… same=deploy/FILE        a part of that file
    ```… fragment                a part of a configuration: checked inside a whole one
    ```… not-run                 not run; docs/README.md says why

The test replaces the ports of the demo (6001, 6002), of MQTT (1883, 1884) and of backends (5000 to 5004) by free ports, and
absolute paths by paths in the folder. Commands that change the machine, or need a missing program, have replacements:
`STAND_INS`.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.nodejs import MODULES
from tests.support.process import DEADLINE, free_ports, wait_until

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "docs" / "decisions", ROOT / "clients" / "js")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))
KINDS = ("file", "fails", "background", "restart", "answer", "shows", "browser", "same", "fragment", "not-run")
ELSEWHERE = ("/etc/push1st", "/run/push1st", "/opt/push1st", "/var/lib/push1st")
"""paths outside the folder that pages use"""
_FENCE = re.compile(r"^```(\w[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LARGE = 9999

PUSH1ST = """#!/bin/bash
# push1st, whose demo is on free ports here.
case "$*" in
serve) [ -n "${PUSH1ST_APP_ID-}" ] || export PUSH1ST_SERVER_LISTEN=tcp://127.0.0.1:6001 PUSH1ST_API_LISTEN=tcp://127.0.0.1:6002 ;;
*--url*|*--api*) ;;
init) PYTHON -m push1st init && exec sed -i 's/:[6]001/:6001/; s/:[6]002/:6002/' server.yml ;;
subscribe\\ *) set -- "$@" --url ws://127.0.0.1:6001 ;;
publish\\ *) set -- "$@" --api http://127.0.0.1:6002 ;;
esac
exec PYTHON -m push1st "$@"
"""

DOCKER = """#!/bin/bash
# `docker run` and `docker exec` without a container: the same command with the same variables, files and arguments, here.
set -eu
case $1 in
exec) shift 2; exec "$@" ;;
run) shift ;;
*) exit 1 ;;
esac
export PUSH1ST_SERVER_LISTEN=tcp://127.0.0.1:6001 PUSH1ST_API_LISTEN=tcp://127.0.0.1:6002
while :; do
    case $1 in
    -e) export "$2"; shift 2 ;;
    -v) from=${2%%:*}; to=${2#*:}; to=${to%:ro}; mkdir -p "$(dirname "$to")"; ln -sfn "$from" "$to"; shift 2 ;;
    -p | --name) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
[ "$1" = push1st ] # the image; `docker build` is tried by hand
shift
exec push1st "${@-serve}"
"""

INSTALL = """#!/bin/bash
# `install` that leaves owners as they are.
keep=()
while [ $# -gt 0 ]; do
    case $1 in
    -o | -g) shift 2 ;;
    *) keep+=("$1"); shift ;;
    esac
done
exec /usr/bin/install "${keep[@]}"
"""

RUNUSER = """#!/bin/bash
# `runuser -u USER -- COMMAND` as whoever runs the tests.
shift 3
exec "$@"
"""

NOTHING = "#!/bin/sh\n"
STAND_INS = {"runuser": RUNUSER, "push1st": PUSH1ST, "docker": DOCKER, "install": INSTALL, "useradd": NOTHING, "chown": NOTHING}

BROWSER = """
import { createRequire } from 'node:module';
import './push1st.js';
const load = createRequire(process.cwd() + '/x.js');
globalThis.mqtt = load('mqtt'); // before `window`: mqtt.js would use the workers of a browser
globalThis.Pusher = load('pusher-js');
globalThis.window = globalThis;
globalThis.document = { body: { append: (...what) => console.log(...what) } };
"""


@dataclass(frozen=True)
class Block:
    """One fenced block. words: the words after its language."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def says(self, word: str) -> bool:
        return word in self.words

    def value(self, word: str) -> str:
        """Returns the text after `word=`, or an empty text."""
        return next((one.partition("=")[2] for one in self.words if one.startswith(f"{word}=")), "")


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page in their order. Indented blocks are text."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match[1].split()
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, tuple(words), match[2]))
    return found


def is_run(block: Block) -> bool:
    """Returns whether the block is a command or a file, and not an expected output."""
    return not any(block.says(word) for word in ("not-run", "answer", "shows"))


class Background:
    """A background command and its output."""

    def __init__(self, command: str, folder: Path, env: dict[str, str], number: int) -> None:
        self.output = folder / f".output-{number}"
        with open(self.output, "wb") as out:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seen(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def stop(self) -> None:
        """Ends the command and the processes it started, as Ctrl-C does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Story:
    """A page in progress, in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="p1-"))  # short: the path of a Unix socket has at most 107 bytes
        self.ws_port, self.api_port, proxy, mqtt, bridge, *backends = free_ports(10)
        self.ports = {
            "6001": self.ws_port,
            "8080": self.ws_port,
            "6002": self.api_port,
            "8443": proxy,
            "1883": mqtt,
            "1884": bridge,
        }
        self.ports |= {str(5000 + number): port for number, port in enumerate(backends)}
        self.background: list[Background] = []
        self.printed = ""
        self.configurations: list[Path] = []
        self._fragments = 0
        commands = self.folder / ".venv" / "bin"
        commands.mkdir(parents=True)
        for name, script in STAND_INS.items():
            (commands / name).write_text(self.here(script.replace("PYTHON", sys.executable)))
            (commands / name).chmod(0o755)
        (self.folder / "deploy").mkdir()
        for file in (one for one in (ROOT / "deploy").iterdir() if one.is_file()):
            (self.folder / "deploy" / file.name).write_text(self.here(file.read_text()))
        for file in (ROOT / "clients" / "js").glob("*.*js"):
            shutil.copy(file, self.folder)
        (self.folder / "node_modules").symlink_to(MODULES)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PUSH1ST_")}
        self.env["PUSH1ST_SERVER_DRAIN"] = "0"  # no load balancer needs time here
        self.env["PATH"] = os.pathsep.join((str(commands), str(Path(sys.prefix) / "bin"), self.env["PATH"], "/usr/sbin"))

    def here(self, text: str) -> str:
        """Returns the text with the ports and paths of this test."""
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        for path in ELSEWHERE:
            text = re.sub(rf"(?<!:/){path}", f"{self.folder}{path}", text)  # unix://opt/… is a relative path
        return text

    def do(self, block: Block) -> None:
        """Runs one block. Raises AssertionError with the line of the block."""
        unknown = [word for word in block.words if word.partition("=")[0] not in KINDS]
        assert not unknown, f"{block.place}: unknown words {unknown}"
        text = self.here(block.text)
        if block.says("not-run"):
            return
        if name := block.value("same"):
            self._same(block, name)
        elif name := block.value("file"):
            self._write(block, self.here(name), text)
        elif block.says("fragment"):
            self._check_fragment(block, text)
        elif block.says("answer"):
            self._compare(block, text)
        elif block.says("shows"):
            self._shown(block, text)
        elif block.says("background") or block.says("restart"):
            if block.says("restart"):
                self._stop_all()
            self._start(block, text)
        elif block.language == "bash":
            self._run(block, ["bash", "-euo", "pipefail", "-c", text])
        elif block.language == "python":
            self._run(block, [sys.executable, "-c", text])
        elif block.language == "js" and block.says("browser"):
            self._browse(block, text)
        else:
            raise AssertionError(f"{block.place}: a block of {block.language} must say what it is, or not-run")

    def end(self) -> None:
        """Checks the configurations and stops the background commands."""
        try:
            for file in self.configurations:
                self.check(file)
        finally:
            self._stop_all()
            shutil.rmtree(self.folder)

    def _stop_all(self) -> None:
        for one in reversed(self.background):
            one.stop()

    def check(self, file: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "push1st", "check", "-c", str(file)], capture_output=True, text=True, env=self.env, timeout=30
        )
        assert done.returncode == 0, f"{file.name}: {done.stderr}"

    # The kinds of blocks

    def _write(self, block: Block, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        assert not file.exists() or block.value("file").startswith("/etc/"), f"{block.place}: {name} is written twice"
        file.write_text(text)
        if file.suffix in (".yml", ".yaml") and re.search(r"^(server|api):", text, re.MULTILINE):
            self.configurations.append(file)

    def _check_fragment(self, block: Block, text: str) -> None:
        """Checks a part of server.yml, or of a file of apps."""
        self._fragments += 1
        folder = self.folder / f".fragment-{self._fragments}"
        folder.mkdir()
        root = re.match(r"(server|api|log|broker|ssl|credentials|hooks|metrics|console):", text) is not None
        names_apps = re.search(r"^credentials:", text, re.MULTILINE) is not None
        (folder / "server.yml").write_text((text if root else "") + ("" if names_apps else "\ncredentials: [ apps.yml ]\n"))
        (folder / "apps.yml").write_text("shop: { key: a-public-key, secret: a-secret }\n" if root else text)
        try:
            self.check(folder / "server.yml")
        except AssertionError as exc:
            raise AssertionError(f"{block.place}: {exc}") from None

    def _same(self, block: Block, name: str) -> None:
        whole = (ROOT / name).read_text()
        part = textwrap.dedent(block.text)
        assert part in textwrap.dedent(whole) or block.text in whole, f"{block.place}: is not a part of {name}"

    def _start(self, block: Block, text: str) -> None:
        text = text.replace("tcp://*:", "tcp://127.0.0.1:")  # tests listen on this machine only
        one = Background(text, self.folder, self.env, len(self.background))
        self.background.append(one)
        if "push1st serve" in text or "docker run" in text:
            try:
                wait_until(lambda: self._ready(one), f"{block.place}: the server is ready")
            except AssertionError as exc:
                raise AssertionError(f"{exc}\n{one.seen}") from None

    def _ready(self, server: Background) -> bool:
        assert server.process.poll() is None, f"the server ended:\n{server.seen}"
        connection = http.client.HTTPConnection("127.0.0.1", self.ws_port, timeout=1)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _run(self, block: Block, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
        self.printed = done.stdout
        assert (done.returncode != 0) == block.says("fails"), (
            f"{block.place}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{self._all_seen()}"
        )
        if block.says("fails"):
            self.printed += done.stderr

    def _browse(self, block: Block, text: str) -> None:
        """Starts a script of the page in the background."""
        file = self.folder / f".browser-{block.line}.mjs"
        file.write_text(BROWSER + text)
        self.background.append(
            Background(f"exec node --experimental-websocket --no-warnings {file}", self.folder, self.env, len(self.background))
        )

    def _compare(self, block: Block, want: str) -> None:
        got = self.printed
        if block.language == "json":
            try:
                fits = alike(json.loads(want), json.loads(got))
            except ValueError:
                fits = False
        else:
            fits = pattern(want).fullmatch(got.strip()) is not None
        assert fits, f"{block.place}: the page says\n{want}\nbut it was\n{got}\n{self._all_seen()}"

    def _shown(self, block: Block, want: str) -> None:
        assert self.background, f"{block.place}: nothing runs in the background"
        one, wanted = self.background[-1], pattern(want)
        try:
            wait_until(lambda: wanted.search(one.seen), f"{block.place}: {want!r} is shown")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it was\n{one.seen}") from None

    def _all_seen(self) -> str:
        return "\n".join(one.seen for one in self.background)


def pattern(text: str) -> re.Pattern[str]:
    """Compares texts; `…` matches anything."""
    return re.compile(".*?".join(re.escape(part) for part in text.strip().split("…")), re.DOTALL)


def alike(want: Any, got: Any) -> bool:
    """Returns whether JSON values are equal, except for `…` and large numbers."""
    if isinstance(want, dict):
        return isinstance(got, dict) and want.keys() == got.keys() and all(alike(want[key], got[key]) for key in want)
    if isinstance(want, list):
        return isinstance(got, list) and len(want) == len(got) and all(map(alike, want, got))
    if isinstance(want, str):
        return isinstance(got, str) and pattern(want).fullmatch(got.strip()) is not None
    if isinstance(want, int) and want > _LARGE:
        return isinstance(got, int)
    return bool(want == got)


@contextlib.contextmanager
def story() -> Iterator[Story]:
    one = Story()
    try:
        yield one
    finally:
        one.end()
