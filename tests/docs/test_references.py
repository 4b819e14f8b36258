"""What the reference pages say of the code is so, and is all there is."""

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from push1st.errors import Refused
from push1st.messages import Failure, Message, Ping, Publish
from push1st.protocols import Codec
from push1st.protocols.websocket import text_frame
from tests.clients.process import ServerProcess, running
from tests.clients.pusher_socket import pusher_socket
from tests.docs.pages import ROOT, blocks

SOURCE = ROOT / "src" / "push1st"
REFUSING = ("Refused", "LimitReached", "Disconnect", "_refusal", "error", "_refuse", "close", "leave", "disconnect")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_code_says() -> None:
    assert page("configuration.md") == generator().page(), "run: python docs/generate.py"


# -- errors


def calls(file: Path) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in REFUSING:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.args[0], node.args[1]
            elif name == "_cut_off" and len(node.args) > 2:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.args[1], node.args[2]


def refusals() -> Iterator[tuple[str, int, str]]:
    """Place, code (0: not a fixed one) and message of everything that is refused or closed with a code."""
    for file in sorted(SOURCE.rglob("*.py")):
        names = constants(file)
        for place, code, text in calls(file):
            number = code.value if isinstance(code, ast.Constant) and isinstance(code.value, int) else 0
            yield place, number, message(text, names)


def constants(file: Path) -> dict[str, ast.expr]:
    """What a module's names stand for."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                found[name] = value
    return found


def message(text: ast.expr, names: Mapping[str, ast.expr]) -> str:
    """A text of the code, with `…` where it has a value; nothing where it is put together elsewhere."""
    match text:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.Name(id=name) if name in names:
            return message(names[name], {})
    return ""


def helpers() -> Iterator[tuple[str, str]]:
    """Messages that pure functions return for their callers to refuse with."""
    for file in (SOURCE / "channels.py", SOURCE / "messages.py", SOURCE / "auth.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name.strip("_").rsplit("_", 1)[-1] in ("error", "ambiguous"):
                returned = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
                yield from ((f"{file.name}: {function.name}", message(value, {})) for value in returned if value is not None)


def known() -> set[str]:
    """The messages of the page's tables, without the code's marks."""
    tables = page("errors.md").partition("\n## Messages")[2].partition("\n## ")[0]
    return {plain(cell) for cell in re.findall(r"^\| `([^|]+?)` \|", tables, re.MULTILINE)}


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"…+", "…", text)).strip()


def test_every_message_of_a_refusal_is_on_the_errors_page() -> None:
    there = known()
    messages = [*((place, text) for place, _, text in refusals()), *helpers()]
    missing = sorted({f"{plain(text)}   ({place})" for place, text in messages if text and plain(text) not in there})
    assert missing == [], "docs/errors.md needs a row with what to do"


def test_the_errors_page_has_no_message_that_is_gone() -> None:
    here = {plain(text) for _, _, text in refusals()} | {plain(text) for _, text in helpers()}
    gone = sorted(text for text in known() if text not in here)
    assert gone == []


def test_every_code_is_on_the_errors_page() -> None:
    text = page("errors.md")
    codes = {code for _, code, _ in refusals() if code} | {4301, 4302, 4300, 1000}
    assert [code for code in sorted(codes) if not re.search(rf"^\| {code} \|", text, re.MULTILINE)] == []


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
    assert there == set(re.findall(r"^\| `(push1st_\w+)` \|", page("metrics.md"), re.MULTILINE))


def test_the_types_and_labels_of_metrics_are_those_of_the_page(server: ServerProcess) -> None:
    with pusher_socket(server, "app-key"):
        text = server.get("/metrics").body.decode()
    rows = re.findall(r"^\| `(push1st_\w+)` \| (\w+) \| (?:`(\w+)`)?", page("metrics.md"), re.MULTILINE)
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
    with pytest.raises(Refused):
        codec.decode("orders")
