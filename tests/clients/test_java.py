"""Java's own HTTP client, as backends in Java use it: a small program that is compiled and run here."""

import json
import subprocess
from pathlib import Path

from tests.support.process import ServerProcess, program

PROGRAM = Path(__file__).parent / "java" / "Publish.java"
JAVA_SECONDS = 60
"""for the compiler too, on a machine that does other things"""


def test_http_client_publishes_and_listens(server: ServerProcess) -> None:
    """It offers HTTP/2 with each request, body and all; what it does not get, it does not miss."""
    program("javac", "default-jdk-headless")
    run = [
        program("java", "default-jdk-headless"),
        str(PROGRAM),
        f"{server.api}/apps/app-test/events",
        f"{server.ws}/ws/app/app-key/java",
    ]
    done = subprocess.run(run, capture_output=True, text=True, timeout=JAVA_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for answer in lines[::2]:
        status, version, body = answer.split(" ", 2)
        assert (status, version) == ("200", "HTTP_1_1")
        assert json.loads(body)["channels"] == {"java": 1}
    assert [json.loads(line)["data"] for line in lines[1::2]] == [1, "x" * 9000, 3]
