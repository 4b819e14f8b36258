"""The files for Prometheus in deploy/, the program that checks them, and a real Prometheus."""

import http.client
import json
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT
from tests.support.process import free_ports, program

RULES = ROOT / "deploy" / "prometheus" / "push1st.rules.yml"
SOKETI = ROOT / "deploy" / "prometheus" / "soketi-compat.rules.yml"


def rules(file: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules(RULES)}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool", "prometheus"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


class Prometheus:
    """A Prometheus that scrapes every second. `jobs`: the scrape configurations."""

    def __init__(self, folder: Path, jobs: list[dict[str, Any]]) -> None:
        (self._port,) = free_ports(1)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES), str(SOKETI)],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdout=output,
                stderr=output,
            )

    def get(self, path: str, **query: str) -> Any:
        assert self.process.poll() is None, self.output.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
            answer = connection.getresponse()
            return json.loads(answer.read())["data"] if answer.status == 200 else None  # 503 while it starts
        except OSError:  # it does not listen yet
            return None
        finally:
            connection.close()

    def query(self, expr: str) -> dict[str, float]:
        """Returns the values of an instant query, by job."""
        found = self.get("query", query=expr) or {"result": []}
        return {one["metric"].get("job", ""): float(one["value"][1]) for one in found["result"]}

    def rules(self) -> list[dict[str, Any]]:
        """Returns the state of each rule."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
