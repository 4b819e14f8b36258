"""The reference pages match the code, and are complete."""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from push1st.brokers.history import REASONS
from push1st.errors import Refused
from push1st.messages import Failure, Message, Ping, Publish
from push1st.metrics import CUT_OFFS, MQTT_DROPPED, REFUSALS
from push1st.protocols import Codec
from push1st.protocols.mqtt.packets import ReasonCode
from push1st.protocols.pusher import CODES, NOTICE
from push1st.protocols.websocket import text_frame
from push1st.transports.entries.raw import RawEntry
from tests.docs.pages import ROOT, blocks
from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import pusher_socket

SOURCE = ROOT / "src" / "push1st"
REFUSING = ("Refused", "LimitReached", "Disconnect", "_refusal", "error", "_refuse", "close", "leave", "disconnect", "Failure")
HELPERS = re.compile(r"(?:\w*_)?(?:error|ambiguous|why_not)\(")
"""the functions that report errors, as the code calls them"""
NOTICES = {4302}
"""codes of `pusher:error` that reject nothing"""
NEVER_SENT = {1000, 1006}
"""close codes that clients send"""


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_page_matches_the_code() -> None:
    assert page("configuration.md") == generator().page(), "run: python docs/generate.py"


def test_remedies_of_the_console_match_the_page_of_errors() -> None:
    assert (SOURCE / "console" / "remedies.json").read_text() == generator().remedies(), "run: python docs/generate.py"


# -- errors


class Refusal(NamedTuple):
    """A place in the source that rejects, or closes with a code. code: 0 if the code is not fixed."""

    place: str
    code: int
    text: str
    """with `…` where it has a value; nothing where it is passed on"""


@functools.cache
def refusals() -> tuple[Refusal, ...]:
    """Returns all places of the source. It is read once, because this takes seconds."""
    return tuple(_refusals())


def _refusals() -> Iterator[Refusal]:
    for file in sorted(SOURCE.rglob("*.py")):
        tree = parsed(file)
        names = constants(file)
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for line, code, text in said(function):
                place = f"{file.relative_to(ROOT)}:{line}"
                words = message(text, names)
                assert words is not None or passes_on(text, function), f"{place}: which message is this? Only HELPERS may make it"
                number = code.value if isinstance(code, ast.Constant) else 0
                yield Refusal(place, number if isinstance(number, int) else 0, words or "")


def said(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, ast.expr, ast.expr]]:
    """Returns line, code and text of each rejection in a function."""
    for node in ast.walk(function):
        match node:
            case ast.Call(
                func=ast.Name(id="Refused" | "ConnectRefused") | ast.Attribute(attr="_end"),
                args=[ast.Attribute(value=ast.Name(id="ReasonCode")) as code, text],
            ):
                yield node.lineno, code, text
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[code, text, *_]) if name in REFUSING:
                if is_code(code):
                    yield node.lineno, code, text
            case ast.Call(func=ast.Attribute(attr="_cut_off"), args=[_, code, text]):
                yield node.lineno, code, text
            case ast.Call(func=ast.Name(id="Response"), args=[ast.Constant(value=int(status)) as code, body, *_]) if (
                status >= 400
            ):
                yield node.lineno, code, error_of(body)
            case ast.Return(value=ast.Tuple(elts=[code, text])) if function.name == "slow":
                yield node.lineno, code, text


def is_code(code: ast.expr) -> bool:
    match code:
        case ast.Constant(value=int()) | ast.Name(id="code" | "status") | ast.Attribute(attr="code") | ast.IfExp():
            return True
    return False


def error_of(body: ast.expr) -> ast.expr:
    """Returns the message in the body of an answer."""
    match body:
        case ast.Call(args=[ast.Dict(keys=[ast.Constant(value="error")], values=[text])]):
            return text
        case ast.Constant(value=bytes(text)):
            return ast.Constant(text.decode().strip())
    return body


def passes_on(text: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether a text has another source: a caught rejection, the caller, one of `helpers`, or a library's exception."""
    match text:
        case ast.Attribute(attr="text" | "reason") | ast.Call(func=ast.Name(id="str"), args=[ast.Name(id="error" | "exc")]):
            return True
        case ast.Call():
            return HELPERS.search(ast.unparse(text)) is not None
        case ast.Name(id=name):
            if name in {one.arg for one in function.args.args}:
                return True
            bound = (node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.NamedExpr))
            return any(name in ast.unparse(node) and HELPERS.search(ast.unparse(node)) for node in bound)
    return False


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@functools.cache
def constants(file: Path) -> dict[str, ast.expr]:
    """Returns the values of a module's names, including constants that it imports from other modules of the package."""
    found: dict[str, ast.expr] = {}
    for node in parsed(file).body:
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("push1st."):
                source = SOURCE.joinpath(*module.split(".")[1:]).with_suffix(".py")
                imported = {one.name: one.asname or one.name for one in names if one.name.isupper()}
                if imported and source.is_file():
                    found.update({imported[name]: value for name, value in constants(source).items() if name in imported})
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                found[name] = value
    return found


def message(text: ast.expr, names: Mapping[str, ast.expr]) -> str | None:
    """Returns a text of the code, with `…` for each value; None if other code builds the text."""
    match text:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.Name(id=name) if name in names:
            return message(names[name], {})
    return None


def helpers() -> Iterator[tuple[str, str]]:
    """Returns messages that functions return to their callers, which reject with them."""
    for file in sorted(SOURCE.rglob("*.py")):
        for function in ast.walk(parsed(file)):
            if isinstance(function, ast.FunctionDef) and HELPERS.fullmatch(f"{function.name}("):
                returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
                either = [(one.body, one.orelse) if isinstance(one, ast.IfExp) else (one,) for one in returned]
                texts = (message(text, {}) for texts in either for text in texts)
                yield from ((f"{file.name}: {function.name}", text) for text in texts if text)


def rows(section: str) -> list[list[str]]:
    """Returns the cells of a section's tables, up to the next section of the same level."""
    rank = section.split()[0]
    text = page("errors.md").partition(f"\n{section}\n")[2]
    assert text, section
    lines = re.split(rf"\n{rank} ", text)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if re.match(r"\| [`\d]", line)]


def known() -> set[str]:
    """Returns the messages of the page's tables, without the marks of code."""
    return {plain(first.strip("`")) for first, *_ in rows("## Messages")}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"…+", "…", text)).strip()


def test_every_message_of_a_refusal_is_on_the_errors_page() -> None:
    there = known()
    messages = [*((place, text) for place, _, text in refusals()), *helpers()]
    missing = sorted({f"{plain(text)}   ({place})" for place, text in messages if text and plain(text) not in there})
    assert missing == [], "docs/errors.md needs a row with what to do"


def test_every_reason_code_that_the_server_sends_is_on_the_errors_page() -> None:
    section = page("errors.md").partition("\n## Reason codes of MQTT\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| ([\dA-F]{2})(?: \(\d\))? \| (\d+) \| ([^|]+) \|", section, re.MULTILINE)
    there = {ReasonCode[name.upper().replace(" ", "_")] for _, _, name in table}
    assert [row for row in table if not ReasonCode[row[2].upper().replace(" ", "_")] == int(row[0], 16) == int(row[1])] == []
    source = "".join(file.read_text() for file in SOURCE.rglob("*.py"))
    sent = {ReasonCode[name] for name in re.findall(r"ReasonCode\.([A-Z]\w+)", source)}
    assert sent - there == {ReasonCode.SUCCESS}


def test_errors_page_has_only_existing_messages() -> None:
    here = {plain(text) for _, _, text in refusals()} | {plain(text) for _, text in helpers()}
    assert sorted(known() - here) == []


def test_every_status_is_on_the_errors_page_and_no_other() -> None:
    used = {code for _, code, _ in refusals() if 400 <= code < 600} | {*RawEntry.statuses.values()}
    assert {int(row[0]) for row in rows("## HTTP statuses")} == used


def test_every_close_code_is_on_the_errors_page_and_no_other() -> None:
    used = {code for _, code, _ in refusals() if code >= 1000 and code not in NOTICES}
    assert {int(row[0]) for row in rows("## Close codes")} == used | NEVER_SENT


def test_every_code_of_a_pusher_error_is_on_the_errors_page_and_no_other() -> None:
    codes = {int(row[0]) for row in rows("## Pusher errors") if row[0].isdigit()}
    assert codes == {*CODES.values(), NOTICE, *NOTICES}


def test_each_row_of_the_errors_page_has_a_remedy() -> None:
    sections = (
        "## HTTP statuses",
        "## Close codes",
        "## Pusher errors",
        "## Raw WebSocket errors",
        "## Messages",
        "## At the start",
    )
    assert [row for section in sections for row in rows(section) if not all(row)] == []


def test_every_close_code_of_pusher_is_on_the_protocols_page() -> None:
    text = page("protocols.md")
    codes = {code for _, code, _ in refusals() if 4000 <= code < 4300}
    assert [code for code in sorted(codes) if f"| {code} |" not in text] == []


# -- metrics


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running({"server": {"workers": 2}}) as process:
        yield process


def test_every_metric_is_on_the_metrics_page_and_no_other(server: ServerProcess) -> None:
    with pusher_socket(server, "app-key"):
        text = server.get("/metrics").body.decode()
    there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert there == set(re.findall(r"^\| `((?:push1st|process)_\w+)` \|", page("metrics.md"), re.MULTILINE))


def test_types_and_labels_of_metrics_match_the_page(server: ServerProcess) -> None:
    with pusher_socket(server, "app-key"):
        text = server.get("/metrics").body.decode()
    rows = re.findall(r"^\| `((?:push1st|process)_\w+)` \| (\w+) \| (?:`(\w+)`)?", page("metrics.md"), re.MULTILINE)
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)", text, re.MULTILINE))
    labels = {name: label for name, label in re.findall(r"^(\w+)\{(\w+)=", text, re.MULTILINE) if label != "worker"}
    for name, kind, label in rows:
        assert types[name] == kind
        assert labels.get(name, label) == label, name


@pytest.mark.parametrize("counter", ["refusals", "cut_offs"])
def test_every_reason_is_on_the_metrics_page(counter: str) -> None:
    counted = re.compile(rf'{counter}\["([\w-]+)"\]|_{counter.removesuffix("s")}\("([\w-]+)"')
    found = (reason for file in SOURCE.rglob("*.py") for reason in counted.findall(file.read_text()))
    reasons = {one or other for one, other in found}
    section = (
        page("metrics.md").partition(f"### Reasons of `push1st_{counter}_total`")[2].partition("\n## ")[0].partition("\n### ")[0]
    )
    assert reasons
    assert [reason for reason in sorted(reasons) if f"| `{reason}` |" not in section] == []
    assert reasons <= set({"refusals": REFUSALS, "cut_offs": CUT_OFFS}[counter]), "shown before its first count"


def test_every_reason_for_dropped_mqtt_messages_is_on_the_metrics_page() -> None:
    section = page("metrics.md").partition("### Reasons of `push1st_mqtt_dropped_total`")[2].partition("\n### ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == sorted(MQTT_DROPPED)
    counted = re.compile(r'(?:mqtt_dropped|DROPPED)\["([\w-]+)"\]|_drop\(\w+, "([\w-]+)"')
    reasons = {one or other for file in SOURCE.rglob("*.py") for one, other in counted.findall(file.read_text())}
    assert reasons <= set(MQTT_DROPPED), "shown before its first count"


def test_every_reason_of_resumed_is_on_the_protocols_page() -> None:
    section = page("protocols.md").partition("\n## Reasons of `resumed`\n")[2]
    assert tuple(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == REASONS


# -- the anatomy of a protocol


def test_the_protocol_of_the_anatomy_is_a_codec() -> None:
    (block,) = (block for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(block.text, names)  # noqa: S102 - our own page
    codec: Codec = names["Lines"]()
    message = Message("app", "orders", "paid", b'{"id":7}', id=1, received=0)
    assert codec.message(message, 0) == text_frame(b'orders paid {"id":7}')
    assert codec.decode('orders paid {"id":7}') == Publish("orders", "paid", b'{"id":7}')
    assert codec.reply(Failure(403, "no")) == text_frame(b"! 403 no")
    assert codec.reply(Ping()) == b""
    assert codec.binary is False
    with pytest.raises(Refused):
        codec.decode("orders")
