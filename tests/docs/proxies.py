"""nginx and Caddy with TLS, as deploy/ configures them, in front of a real server, on free ports and with a new certificate."""

import contextlib
import datetime as dt
import http.client
import ipaddress
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.docs.pages import ROOT
from tests.support.process import DEADLINE, ServerProcess, free_ports, program, running, wait_until

NAME = "push.example.com"
PROXIES = ("nginx", "caddy")


class Proxy:
    """A running proxy: its TLS port, its port without TLS, its certificate, and its server."""

    def __init__(self, port: int, bare: int, certificate: Path, server: ServerProcess) -> None:
        self.port = port
        self.bare = bare
        self.certificate = certificate
        self.server = server
        self.context = ssl.create_default_context(cafile=str(certificate))
        self.context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        # Some clients read in one thread and write in another. TLS objects of Python before 3.13 do not support that: with
        # TLS 1.3 the server sends tickets after the handshake, when the client writes its request, and the request may be lost.
        # Other clients use TLS 1.3.
        self.threads = ssl.create_default_context(cafile=str(certificate))
        self.threads.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self.threads.maximum_version = ssl.TLSVersion.TLSv1_2

    @property
    def url(self) -> str:
        return f"localhost:{self.port}"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Makes a self-signed certificate for this machine; returns the PEM files of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, private


def replaced(text: str, pairs: dict[str, str]) -> str:
    """Returns the text with all of these replaced; fails if one is missing, because then the file has changed."""
    for old, new in pairs.items():
        assert old in text, f"{old!r} is not in the configuration any more"
        text = text.replace(old, new)
    return text


def nginx_configuration(folder: Path, server: ServerProcess, port: int, bare: int, plain: int) -> str:
    """Returns deploy/nginx.conf with free ports of 127.0.0.1, inside the main configuration of a distribution.

    bare: a port without TLS, for clients that support no TLS here. plain: the port that redirects.
    """
    site = replaced(
        (ROOT / "deploy" / "nginx.conf").read_text(),
        {
            "    listen [::]:443 ssl http2;\n": "",
            "    listen [::]:80;\n": "",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2; listen 127.0.0.1:{bare};",
            "listen 80;": f"listen 127.0.0.1:{plain};",
            f"server_name {NAME};": "server_name localhost;",
            f"/etc/letsencrypt/live/{NAME}/fullchain.pem": str(folder / "cert.pem"),
            f"/etc/letsencrypt/live/{NAME}/privkey.pem": str(folder / "key.pem"),
            "/var/log/nginx/push1st.log": str(folder / "access.log"),
            "server 127.0.0.1:6001;": f"server 127.0.0.1:{server.ws_port};",
        },
    )
    paths = "".join(f"{which}_temp_path {folder / which};\n" for which in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    around = "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\nhttp {{\n{1}{2}\n}}\n"
    return around.format(folder, paths, site)


def caddy_configuration(folder: Path, server: ServerProcess, port: int, bare: int, plain: int) -> str:
    """Returns deploy/Caddyfile for localhost, with the certificate of this test."""
    site = replaced(
        (ROOT / "deploy" / "Caddyfile").read_text(),
        {
            f"{NAME} {{": "(site) {",
            "127.0.0.1:6001": f"127.0.0.1:{server.ws_port}",
        },
    )
    options = f"{{\n\tadmin off\n\tauto_https disable_redirects\n\thttp_port {plain}\n\tskip_install_trust\n}}\n"
    tls = f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {folder}/cert.pem {folder}/key.pem\n\timport site\n}}\n"
    return f"{options}{site}{tls}http://localhost:{bare} {{\n\tbind 127.0.0.1\n\timport site\n}}\n"


@contextlib.contextmanager
def proxied(kind: str) -> Iterator[Proxy]:
    """Runs a server as the howto configures it, and the proxy in front. Skips the test if the proxy is not on this machine."""
    proxy = program(kind)
    folder = Path(tempfile.mkdtemp(prefix="p1-proxy-"))
    certificate(folder)
    port, bare, plain = free_ports(3)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        proto = ["pusher", "websocket", "sse"]
        server = stack.enter_context(running({"server": {"proto": proto, "proxies": ["127.0.0.1", "::1"], "drain": 0}}))
        file = folder / ("nginx.conf" if kind == "nginx" else "Caddyfile")
        if kind == "nginx":
            file.write_text(nginx_configuration(folder, server, port, bare, plain))
            command = [proxy, "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
        else:
            file.write_text(caddy_configuration(folder, server, port, bare, plain))
            command = [proxy, "run", "--config", str(file), "--adapter", "caddyfile"]
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"}, cwd=folder
            )
        stack.callback(end, process)
        running_proxy = Proxy(port, bare, folder / "cert.pem", server)
        wait_until(lambda: answers(process, running_proxy, folder / "output"), f"{kind} answers")
        yield running_proxy


def answers(process: "subprocess.Popen[bytes]", proxy: Proxy, output: Path) -> bool:
    assert process.poll() is None, output.read_text()
    connection = http.client.HTTPSConnection("localhost", proxy.port, context=proxy.context, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
