"""The scripts of the console's page: the library in them is the published one, and TypeScript finds no mistake in them."""

import json
import subprocess
from importlib.resources import files

from tests.support.nodejs import CLIENTS, MODULES, node_program

STATIC = files("push1st.console") / "static"


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
