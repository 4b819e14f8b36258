"""The rate of tries to sign in, and the answers to them."""

import asyncio
import ctypes
import os
import platform
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog

from push1st.console import login
from push1st.console.login import MAX_ALL_TRIES, MAX_TRIES, TRIES_SECONDS, Login, Tries
from push1st.errors import Refused
from tests.support.loop import turns


class Password:
    """A password whose checks wait until `go` is set. Stands for `PasswordHash`, whose checks take 50 ms.

    two: set when two checks have begun.
    """

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.two = threading.Event()
        self.lock = threading.Lock()
        self.begun = self.priority = 0

    def fits(self, password: str) -> bool:
        with self.lock:
            self.begun += 1
            if self.begun == 2:
                self.two.set()
        self.priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert self.go.wait(10)
        return password == "right"


SETPRIORITY = {("linux", "x86_64"): 141, ("linux", "aarch64"): 140}
"""the number of the system call, by system and machine"""


class Filter(ctypes.Structure):
    """A program for the kernel's filter of system calls (`struct sock_fprog`)."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


def forbid(call: int) -> None:
    """Makes the kernel reject a system call of this thread, and of the threads that it starts, with EPERM (seccomp)."""
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    eperm, allow = 0x0005_0001, 0x7FFF_0000
    lines = [(load, 0, 0, 0), (jump_if_equal, 0, 1, call), (answer, 0, 0, eperm), (answer, 0, 0, allow)]
    program = Filter(len(lines), b"".join(struct.pack("=HBBI", *line) for line in lines))
    kernel = ctypes.CDLL(None)
    set_no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    assert kernel.prctl(set_no_new_privileges, 1, 0, 0, 0) == 0
    assert kernel.prctl(set_seccomp, by_filter, ctypes.byref(program), 0, 0) == 0


@pytest.fixture
def password() -> Password:
    return Password()


@pytest.fixture
def other():
    """The sign-in of another worker."""
    password: Any = Password()
    return Login(password, lambda: 1000.0, lambda *_: None)


@pytest.fixture
def door(password, other):
    return Login(password, lambda: 1000.0, other.count)


def body(password: str) -> bytes:
    return b'{"password":"%b"}' % password.encode()


def test_address_has_five_tries_a_minute():
    tries = Tries()
    assert [tries.add("a", 10.0 + one) for one in range(MAX_TRIES)] == [(0, False)] * MAX_TRIES
    seconds, _ = tries.add("a", 20.0)
    assert seconds == 50
    assert tries.add("b", 20.0) == (0, False), "other addresses have tries of their own"
    assert tries.add("a", 10.0 + TRIES_SECONDS) == (0, False)
    assert tries.add("a", 10.5 + TRIES_SECONDS)[0] == 0.5


def test_rejected_try_does_not_prolong_the_wait():
    tries = Tries()
    for one in range(100):
        tries.add("a", float(one) / 10)
    assert tries.add("a", float(TRIES_SECONDS)) == (0, False)


def test_many_tries_of_all_addresses_delay_and_do_not_reject():
    tries = Tries()
    found = [tries.add(str(one), 5.0) for one in range(MAX_ALL_TRIES + 3)]
    assert found == [(0, False)] * MAX_ALL_TRIES + [(0, True)] * 3
    assert tries.add("late", 5.0 + TRIES_SECONDS) == (0, False)


def test_signing_in_forgets_the_tries_of_the_address():
    tries = Tries()
    for _ in range(MAX_TRIES):
        tries.add("a", 1.0)
    tries.clear("a")
    assert tries.add("a", 1.0) == (0, False)


def test_table_of_addresses_has_a_bound_and_a_full_table_rejects_new_addresses(monkeypatch):
    monkeypatch.setattr(login, "MAX_ADDRESSES", 3)
    tries = Tries()
    for address in "abc":
        tries.add(address, 1.0)
    assert tries.add("d", 2.0)[0] == TRIES_SECONDS
    assert tries.add("a", 2.0)[0] == 0
    assert tries.add("d", 1.0 + TRIES_SECONDS)[0] == 0, "addresses without a recent try lose their places"


async def test_right_password_is_accepted(door):
    assert await door.check(body("right"), "1.2.3.4") is None


async def test_wrong_password_is_rejected(door):
    answer = await door.check(body("wrong"), "1.2.3.4")
    assert (answer.status, answer.body) == (401, b'{"error":"the password is wrong"}')


@pytest.mark.parametrize("ip", ["1.2.3.4", "2001:db8::1", "127.0.0.1", "unknown", ""])
async def test_sixth_try_of_a_minute_is_rejected_with_retry_after(door, password, ip):
    for _ in range(MAX_TRIES):
        assert (await door.check(body("wrong"), ip)).status == 401
    answer = await door.check(body("right"), ip)
    assert answer.status == 429
    assert answer.headers == b"Retry-After: 60\r\n"
    assert password.begun == MAX_TRIES, "the password of a rejected try is not checked"


async def test_many_rejected_tries_have_one_line_in_the_log(door):
    with structlog.testing.capture_logs() as logged:
        for _ in range(100):
            await door.check(body("hunter2"), "1.2.3.4")
    assert [line["reason"] for line in logged] == ["wrong password"] * MAX_TRIES + ["too many tries"]
    assert "hunter2" not in str(logged)


async def test_addresses_of_an_ipv6_network_are_one_address(door):
    answers = [await door.check(body("wrong"), f"2001:db8::{one}") for one in range(1, MAX_TRIES + 2)]
    assert [answer.status for answer in answers] == [401] * MAX_TRIES + [429]


async def test_two_passwords_are_checked_at_the_same_time_and_a_third_waits_for_its_turn(door, password):
    password.go.clear()
    tries = [asyncio.ensure_future(door.check(body("right"), f"1.1.1.{one}")) for one in range(3)]
    assert await asyncio.to_thread(password.two.wait, 10)
    await turns()
    assert password.begun == 2
    password.go.set()
    assert await asyncio.gather(*tries) == [None] * 3


@pytest.mark.parametrize(("name", "value"), [("WAIT_SECONDS", 0.001), ("MAX_WAITING", 0)])
async def test_try_whose_check_does_not_begin_is_rejected_and_not_counted(door, other, password, monkeypatch, name, value):
    password.go.clear()
    first = [asyncio.ensure_future(door.check(body("right"), f"1.1.1.{one}")) for one in range(2)]
    assert await asyncio.to_thread(password.two.wait, 10)
    monkeypatch.setattr(login, name, value)
    for _ in range(2 * MAX_TRIES):
        third = await door.check(body("right"), "1.1.1.9")
        assert (third.status, third.headers) == (429, b"Retry-After: 1\r\n")
    monkeypatch.undo()
    assert await other.check(body("right"), "1.1.1.9") is None
    password.go.set()
    assert await asyncio.gather(*first) == [None, None]
    assert await door.check(body("right"), "1.1.1.9") is None
    assert password.begun == 3, "the password of a rejected try is not checked"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one priority for a process")
async def test_threads_that_check_passwords_have_a_low_priority(door, password):
    await door.check(body("right"), "1.2.3.4")
    assert password.priority == login.NICE
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) != login.NICE


@pytest.mark.skipif((sys.platform, platform.machine()) not in SETPRIORITY, reason="the number of the system call is unknown")
def test_operators_sign_in_although_the_system_forbids_a_lower_priority(door):
    def sign_in():
        forbid(SETPRIORITY[sys.platform, platform.machine()])
        with pytest.raises(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), login.NICE)
        return [asyncio.run(door.check(body("right"), "1.2.3.4")) for _ in range(2)]

    with ThreadPoolExecutor(1) as filtered:
        assert filtered.submit(sign_in).result(10) == [None, None]


async def test_late_tries_of_many_addresses_are_delayed(door, monkeypatch):
    monkeypatch.setattr(login, "DELAY_SECONDS", 0.05)
    began = asyncio.get_running_loop().time()
    for one in range(MAX_ALL_TRIES):
        await door.check(body("wrong"), f"1.1.2.{one}")
    before = asyncio.get_running_loop().time()
    assert before - began < 0.05 * MAX_ALL_TRIES
    assert await door.check(body("right"), "1.1.3.1") is None
    assert asyncio.get_running_loop().time() - before >= 0.05


async def test_try_counts_at_the_other_workers_too(door, other):
    for _ in range(MAX_TRIES):
        await door.check(body("wrong"), "1.2.3.4")
    assert (await other.check(body("right"), "1.2.3.4")).status == 429


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"password":1}', b'{"password":"\xff"}', b"[" * 4000, b'"right"'])
async def test_body_that_is_no_sign_in_is_rejected_and_not_counted(door, text):
    for _ in range(2 * MAX_TRIES):
        with pytest.raises(Refused, match="the body must be JSON"):
            await door.check(text, "1.2.3.4")
    assert await door.check(body("right"), "1.2.3.4") is None
