"""The sign-in of the console on servers with several workers, its certificate, and changes of its keys."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machine import command, engine, kill, reconfigure, reload, until_workers, workers
from tests.support.certificates import Links
from tests.support.console import PASSWORD, Operator, console
from tests.support.process import ServerProcess, push1st, wait_until


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ServerProcess, Operator]]:
    """A server with two workers. A test that changes the password is the last one that uses it."""
    with console({"server": {"workers": 2}}) as (server, operator):
        until_workers(server, 2)
        yield server, operator


def numbers(operator: Operator, count: int) -> set[int]:
    """Returns the numbers of the workers that answer; the kernel gives each connection to some worker."""
    found: set[int] = set()

    def all_seen() -> bool:
        answer = operator.get("/api/version")
        if answer.status == 200:
            found.add(answer.json["worker"])
        return len(found) == count

    wait_until(all_seen, f"{count} workers answer")
    return found


def until_told(operator: Operator) -> None:
    """Waits until each of the two workers has received what the other has sent: it has replied to a later request."""
    found: set[str | None] = set()

    def all_told() -> bool:
        answer = operator.get("/api/cluster")
        if [node["state"] for node in answer.json["nodes"]] == ["ready"] * 2:
            found.add(answer.headers["Push1st-Worker"])
        return len(found) == 2

    wait_until(all_told, "both workers have replied to each other")


def test_session_is_valid_on_all_workers_until_it_ends_on_one(pair: tuple[ServerProcess, Operator]) -> None:
    _, operator = pair
    operator.sign_in()
    assert numbers(operator, 2) == {0, 1}
    kept = operator.cookie
    assert operator.post("/api/logout").status == 200
    operator.cookie = kept
    wait_until(lambda: all(operator.get("/api/session").status == 401 for _ in range(20)), "all workers know the end")


def test_new_worker_knows_the_sessions_that_ended_before_its_start(pair: tuple[ServerProcess, Operator]) -> None:
    server, operator = pair
    operator.sign_in()
    ended, kept = operator.cookie, Operator(operator.port).sign_in()
    assert operator.post("/api/logout").status == 200
    before = set(workers(server).values())
    reload(server)
    assert set(workers(server).values()).isdisjoint(before), "all workers are new"
    assert kept.get("/api/session").status == 200, "a session outlives its worker"
    operator.cookie = ended
    assert {operator.get("/api/session").status for _ in range(20)} == {401}


def test_session_that_ends_while_the_broker_is_away_ends_on_all_workers_when_it_is_back(
    pair: tuple[ServerProcess, Operator],
) -> None:
    server, operator = pair
    kept = operator.sign_in().cookie
    kill(engine(server))
    assert operator.post("/api/logout").status == 200
    operator.cookie = kept
    wait_until(lambda: all(operator.get("/api/session").status == 401 for _ in range(20)), "all workers know the end", 30)


def test_reload_removes_and_adds_the_console(pair: tuple[ServerProcess, Operator]) -> None:
    server, operator = pair
    reconfigure(server, {"console": {"listen": False}})
    reload(server)
    with pytest.raises(ConnectionRefusedError):
        operator.get("/health")
    reconfigure(server, {"console": {"listen": f"tcp://127.0.0.1:{operator.port}"}})
    reload(server)
    assert operator.sign_in().get("/api/session").status == 200


def test_address_has_five_tries_at_all_workers_together(pair: tuple[ServerProcess, Operator]) -> None:
    _, operator = pair
    operator.sign_in()
    until_told(operator)
    tries = []
    for _ in range(12):
        tries.append(Operator(operator.port).post("/api/login", {"password": "wrong"}).status)
        if tries[-1] == 401:  # the worker counts no other tries, so the last ones need no time
            until_told(operator)
    assert tries == [401] * 5 + [429] * 7


def test_changed_password_ends_all_sessions_of_several_workers(pair: tuple[ServerProcess, Operator]) -> None:
    server, operator = pair
    if operator.get("/api/session").status != 200:  # the address may have no more tries, but it may still have a session
        operator.sign_in()
    reconfigure(server, {"console": {"password": "another password"}})
    reload(server)
    assert {operator.get("/api/session").status for _ in range(10)} == {401}
    assert operator.post("/api/login", {"password": PASSWORD}).status == 401
    operator.sign_in("another password")
    file = str(server.folder / "server.yml")
    shown = push1st("status", "-c", file).stdout + push1st("status", "--json", "-c", file).stdout + server.output
    assert "another password" not in shown


def test_one_worker_names_the_keys_of_the_console_that_need_a_restart() -> None:
    with console() as (server, operator):
        operator.sign_in()
        change = {"password": "another password", "origin": "https://console.example", "proxies": "192.0.2.1"}
        reconfigure(server, {"console": change})
        failed = command(server)
        assert failed.returncode == 1
        assert "a restart is needed for console.password, console.origin, console.proxies" in failed.stdout + failed.stderr
        assert "another password" not in failed.stdout + failed.stderr
        assert operator.get("/api/session").status == 200


def test_certificate_of_the_console_is_renewed_while_it_runs(tmp_path: Path) -> None:
    links = Links(tmp_path)
    tls = {"enable": True, "key": str(links.key), "cert": str(links.cert)}
    with console(ssl=tls) as (server, plain):
        operator = Operator(plain.port, trust=links.trust)
        answer = operator.post("/api/login", {"password": PASSWORD})
        assert answer.headers["Set-Cookie"].startswith("__Host-push1st-")
        assert operator.get("/api/session").status == 200
        links.renew()
        assert "console: new certificate" in command(server).stdout
        assert serial(operator.port, links.trust) == links.serial
        assert operator.get("/api/session").status == 200
        assert 'push1st_certificate_expiry_timestamp_seconds{listener="console"}' in server.get("/metrics").body.decode()


def serial(port: int, trust: ssl.SSLContext) -> int:
    """Returns the serial number of the certificate of a server on this machine."""
    with socket.create_connection(("127.0.0.1", port)) as raw, trust.wrap_socket(raw, server_hostname="127.0.0.1") as secure:
        found = secure.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)
