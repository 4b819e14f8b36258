"""Java's own HTTP client, as backends in Java use it: the test compiles and runs a small program."""

import json
import subprocess
from pathlib import Path

from tests.support.process import ServerProcess, program

PROGRAM = Path(__file__).parent / "java" / "Publish.java"
JAVA_SECONDS = 60
"""maximum time for the compiler and the program, on a busy machine"""


def test_http_client_publishes_and_listens(server: ServerProcess) -> None:
    """The client offers HTTP/2 with each request, also with a body, and uses HTTP/1.1 without an upgrade."""
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
