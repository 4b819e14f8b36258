"""The console behind nginx and Caddy, with the lines of docs/console.md, at a host name of its own and below a path."""

import contextlib
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.proxies import certificate, end
from tests.support.console import PASSWORD, Operator, console
from tests.support.process import free_ports, program, wait_until

PAGE = (ROOT / "docs" / "console.md").read_text()


def lines(language: str) -> str:
    """Returns the only block of a language on the page."""
    (found,) = re.findall(rf"^```{language} not-run\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def nginx(folder: Path, port: int, target: int, path: str) -> str:
    (upgrade,) = re.findall(r"^map \$http_upgrade .*?^}$", (ROOT / "deploy" / "nginx.conf").read_text(), re.MULTILINE | re.DOTALL)
    site = (
        lines("nginx").replace("127.0.0.1:6003;", f"127.0.0.1:{target}{path and '/'};").replace("location /", f"location /{path}")
    )
    temporary = "".join(f"{one}_temp_path {folder / one};\n" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    tls = f"listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;"
    return (
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n{temporary}access_log off;\n{upgrade}\nserver {{\n{tls}\n{site}}}\n}}\n"
    )


def caddy(folder: Path, port: int, target: int, path: str) -> str:
    site = lines("caddy").replace("127.0.0.1:6003", f"127.0.0.1:{target}")
    if path:
        site = site.replace("reverse_proxy", f"handle_path /{path}* {{\nreverse_proxy") + "}\n"
    own = f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {folder}/cert.pem {folder}/key.pem\n"
    return f"{{\n\tadmin off\n\tauto_https off\n\tskip_install_trust\n}}\n{site.replace('console.example.com {', own)}"


@contextlib.contextmanager
def behind(kind: str, path: str) -> Iterator[Operator]:
    """Runs a console and a proxy, and returns an operator who opens the console through the proxy."""
    command = program(kind)
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="p1-proxy-"))
    certificate(folder)
    trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        origin = f"https://localhost:{port}"
        _, direct = stack.enter_context(console(origin=origin, proxies=["127.0.0.1"]))
        file = folder / "configuration"
        file.write_text({"nginx": nginx, "caddy": caddy}[kind](folder, port, direct.port, path))
        arguments = ["-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
        if kind == "caddy":
            arguments = ["run", "--config", str(file), "--adapter", "caddyfile"]
        with open(folder / "output", "wb") as output:
            environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin"}
            process = subprocess.Popen([command, *arguments], stdout=output, stderr=output, env=environment, cwd=folder)
        stack.callback(end, process)
        operator = Operator(port, origin=origin, host=f"localhost:{port}", trust=trust)

        def answers() -> bool:
            assert process.poll() is None, (folder / "output").read_text()
            with contextlib.suppress(OSError):
                return operator.get(f"/{path}health").status == 200
            return False

        wait_until(answers, f"{kind} answers")
        yield operator


@pytest.mark.parametrize("path", ["", "console/"])
@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_console_works_behind_a_proxy(kind: str, path: str) -> None:
    with behind(kind, path) as operator:
        page = operator.get(f"/{path}")
        assert page.status == 200
        for link in re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode()):
            assert operator.get(f"/{path}{link}").status == 200
        answer = operator.post(f"/{path}api/login", {"password": PASSWORD})
        assert answer.status == 200, answer
        assert answer.headers["Set-Cookie"].startswith("__Host-push1st-")
        assert operator.get(f"/{path}api/session").status == 200
        assert operator.post(f"/{path}api/logout").status == 200
