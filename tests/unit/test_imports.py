"""The server imports no library that it does not use."""

import subprocess
import sys

import pytest

from push1st.imports import without


def test_server_imports_neither_rich_nor_cryptography() -> None:
    code = (
        "import sys, push1st.cli, push1st.process.single, push1st.process.supervisor, push1st.process.worker; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert {"structlog", "jwt"} <= loaded
    assert {"rich", "cryptography", "aiohttp"}.isdisjoint(loaded)


def test_package_is_not_found_in_the_block_only() -> None:
    sys.modules.pop("colorsys", None)
    with without("colorsys"), pytest.raises(ImportError):
        import colorsys  # noqa: F401
    import colorsys as found

    assert found.rgb_to_hls(0, 0, 0) == (0, 0, 0)
    with without("colorsys"):
        import colorsys as again
    assert again is found
