"""Signs operators in: bounds the rate of tries, and checks passwords in a thread."""

import asyncio
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec

from push1st import logs
from push1st.console.passwords import PasswordHash
from push1st.errors import Refused
from push1st.messages import Response
from push1st.transports.answers import error
from push1st.transports.caller import shared_address

MAX_TRIES = 5
"""the maximum number of tries of an address in `TRIES_SECONDS`"""
TRIES_SECONDS = 60
MAX_ALL_TRIES = 20
"""after so many tries of all addresses in `TRIES_SECONDS`, each further try waits for `DELAY_SECONDS`"""
DELAY_SECONDS = 1
MAX_ADDRESSES = 10_000
MAX_CHECKS = 2
"""the maximum number of passwords that are checked at the same time"""
MAX_WAITING = 100
"""the maximum number of further tries that wait for a check; each takes some 50 ms"""
WAIT_SECONDS = 5.0
"""the maximum number of seconds that a try waits until its check begins"""
NICE = 10
"""The niceness of the threads that check passwords. Measured on 2 cores, with 65 tries a second from as many addresses: 99 % of
the publishes of other clients take at most 2.0 ms, and 4.4 ms without this."""

log = logs.get("push1st.console")


class _Try(msgspec.Struct):
    password: str


_try = msgspec.json.Decoder(_Try)


class Tries:
    """The tries of all addresses in the last `TRIES_SECONDS`."""

    def __init__(self) -> None:
        self._by_address: dict[str, list[float]] = {}
        self._all: deque[float] = deque(maxlen=MAX_ALL_TRIES)
        self._forget_at = 0.0

    def add(self, address: str, now: float) -> tuple[float, bool]:
        """Counts a try. Returns the seconds after which the address may try again, 0 if now; and whether the try is delayed."""
        times = self._by_address.get(address)
        if times is None:
            if len(self._by_address) >= MAX_ADDRESSES and now >= self._forget_at:
                self._forget(now)
            if len(self._by_address) >= MAX_ADDRESSES:
                return TRIES_SECONDS, False
            times = self._by_address[address] = []
        if len(times) == MAX_TRIES:
            if now - times[0] < TRIES_SECONDS:
                return TRIES_SECONDS - (now - times[0]), False
            del times[0]
        is_delayed = len(self._all) == MAX_ALL_TRIES and now - self._all[0] < TRIES_SECONDS
        times.append(now)
        self._all.append(now)
        return 0, is_delayed

    def take_back(self, address: str) -> None:
        """Takes back the last counted try of an address, because its password is not checked or is right."""
        times = self._by_address.get(address)
        if times:
            times.pop()

    def clear(self, address: str) -> None:
        """Forgets the tries of an address that has signed in."""
        self._by_address.pop(address, None)

    def _forget(self, now: float) -> None:
        """Removes the addresses without a recent try. Called at most once a second, because it visits all addresses."""
        self._forget_at = now + 1
        self._by_address = {one: times for one, times in self._by_address.items() if times and now - times[-1] < TRIES_SECONDS}


class Login:
    """Checks the passwords of operators.

    monotonic: a clock in seconds.
    tell: a function that sends the address of each try to the other workers, which call `count` with the same arguments.
    """

    def __init__(self, password: PasswordHash, monotonic: Callable[[], float], tell: Callable[[str, bool], None]) -> None:
        self._password = password
        self._monotonic = monotonic
        self._tell = tell
        self._tries = Tries()
        self._limited = logs.Seldom()
        self._checks = 0
        self._threads = ThreadPoolExecutor(MAX_CHECKS, "console", _lower_priority)

    def count(self, address: str, counts: bool) -> None:
        """Counts a try of an address at another worker; with `counts` false, takes back the last count."""
        if counts:
            self._tries.add(address, self._monotonic())
        else:
            self._tries.take_back(address)

    async def check(self, body: bytes, ip: str) -> Response | None:
        """Checks the password in the body of a request. Returns None if the password is right, otherwise the answer."""
        try:
            password = _try.decode(body).password
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Refused(400, 'the body must be JSON: {"password": "…"}') from None
        address = shared_address(ip) or ip
        seconds, is_delayed = self._tries.add(address, self._monotonic())
        if seconds:
            if times := self._limited.times(self._monotonic()):
                log.warning("console sign-in refused", ip=ip, reason="too many tries", refused=times)
            wait = math.ceil(seconds)
            return error(429, f"too many tries to sign in: wait {wait} s, and try again", _retry_after(wait))
        self._tell(address, True)
        if is_delayed:
            await asyncio.sleep(DELAY_SECONDS)
        fits = await self._fits(password)
        if fits is None:
            self._tries.take_back(address)
            self._tell(address, False)
            return error(429, "others sign in at this moment: wait 1 s, and try again", _retry_after(1))
        if not fits:
            log.warning("console sign-in refused", ip=ip, reason="wrong password")
            return error(401, "the password is wrong")
        self._tries.clear(address)
        self._tell(address, False)
        log.info("console sign-in", ip=ip)
        return None

    async def _fits(self, password: str) -> bool | None:
        """Returns whether a password is right; None if its check has not begun within `WAIT_SECONDS`."""
        if self._checks >= MAX_CHECKS + MAX_WAITING:
            return None
        self._checks += 1
        try:
            check = self._threads.submit(self._password.fits, password)  # the threads run the checks in the order of `submit`
            checked = asyncio.wrap_future(check)
            await asyncio.wait([checked], timeout=WAIT_SECONDS)
            return None if check.cancel() else await checked
        finally:
            self._checks -= 1


def _lower_priority() -> None:
    """Gives this thread a low priority. Otherwise, many tries from many addresses would delay the clients."""
    if sys.platform == "linux":  # on other systems the priority is that of the whole process
        thread = threading.get_native_id()
        with suppress(OSError):  # the system may forbid the call, as the systemd unit in deploy/ does
            os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))


def _retry_after(seconds: int) -> bytes:
    return b"Retry-After: %d\r\n" % seconds
