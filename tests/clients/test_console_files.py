"""The scripts of the console: the library in them is the published one, and TypeScript finds no mistake in them."""

import json
import os
import subprocess
from importlib.resources import files

from tests.support.nodejs import CLIENTS, MODULES, node_program

STATIC = files("push1st.console") / "static"
THIN = "\u202f"


def calls(*expressions: str) -> list[object]:
    """Returns the values of expressions that call functions of text.js, in Node.js."""
    script = (STATIC / "text.js").read_text() + f"console.log(JSON.stringify([{', '.join(expressions)}]))"
    environment = {**os.environ, "TZ": "UTC"}
    found = subprocess.run(
        [node_program(), "--input-type=module", "-"], input=script, env=environment, capture_output=True, text=True, timeout=30
    )
    assert found.returncode == 0, found.stderr
    result: list[object] = json.loads(found.stdout)
    return result


def test_vendored_library_is_the_published_one_byte_for_byte():
    node_program()
    published = MODULES / "htm"
    assert json.loads((published / "package.json").read_text())["version"] == "3.1.1"
    assert (STATIC / "vendor" / "htm-preact.js").read_bytes() == (published / "preact" / "standalone.module.js").read_bytes()
    assert (STATIC / "vendor" / "LICENSE.htm").read_bytes() == (published / "LICENSE").read_bytes()
    assert "MIT License" in (STATIC / "vendor" / "LICENSE.preact").read_text()


def test_every_script_of_the_console_is_checked_and_has_no_type_error():
    node = node_program()
    for path in STATIC.iterdir():
        if path.name.endswith(".js") and path.name != "theme.js":  # a classic script
            assert path.read_text().startswith("// @ts-check\n"), path
    compiler = MODULES / ".bin" / "tsc"
    found = subprocess.run(
        [node, compiler, "--project", CLIENTS / "tsconfig.json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_characters_that_are_invisible_or_reorder_text_are_shown_as_escapes():
    shown = {
        "orders-\u202egnp.exe": "orders-U+202Egnp.exe",
        "a\x00b\x1b[31m": "aU+0000bU+001B[31m",
        "two\nlines\tand\r": "two\\nlines\\tand\\r",
        "zero\u200bwidth\ufeff": "zeroU+200BwidthU+FEFF",
        "isolate\u2066x\u2069": "isolateU+2066xU+2069",
        "tag\U000e0041": "tagU+E0041",
        "مرحبا": "مرحبا",
        "👩\u200d💻 ü <b>": "👩\u200d💻 ü <b>",
    }
    assert calls(*(f"plain({json.dumps(text)})" for text in shown)) == list(shown.values())
    lone = calls('plain("\\ud800x")', 'pieces("a\\u202eb\\n", true)', 'pieces("plain")')
    assert lone == ["U+D800x", ["a", "\u202e", "b\n"], ["plain"]]


def test_numbers_have_few_characters_and_a_unit():
    expected = {
        "short(12345)": "12,345",
        "short(1234567)": f"1.23{THIN}M",
        "rate(0)": "0",
        "rate(0.25)": "0.3",
        "rate(1200.4)": "1,200",
        "bytes(0)": f"0{THIN}B",
        "bytes(1023)": f"1,023{THIN}B",
        "bytes(1536)": f"1.5{THIN}KiB",
        "bytes(5e12)": f"4.5{THIN}TiB",
        "duration(0)": f"0{THIN}ms",
        "duration(0.00042)": f"0.4{THIN}ms",
        "duration(0.2)": f"200{THIN}ms",
        "duration(59.9)": f"59{THIN}s",
        "duration(3600)": f"1{THIN}h",
        "duration(93784)": f"1{THIN}d 2{THIN}h",
        "percent(0.051)": f"5.1{THIN}%",
        "percent(1.5)": f"150{THIN}%",
        "clock(1.5, true)": "00:00:01.500",
        "date(0)": "1970-01-01 00:00:00",
        'count(1, "worker")': "1 worker",
        'count(2000, "worker")': "2,000 workers",
    }
    assert dict(zip(expected, calls(*expected), strict=True)) == expected


def test_json_in_a_string_is_shown_as_json():
    texts = ['{"a":[1]}', '"{\\"a\\":1}"', '"text"', "1", "{cut", "text"]
    shown = calls(*(f"pretty({json.dumps(text)})" for text in texts))
    assert shown == ['{\n  "a": [\n    1\n  ]\n}', '{\n  "a": 1\n}', "text", "1", "{cut", "text"]
