"""Divides the lines of errors, warnings and notes about a configuration into file, line, key and message. Pure.

A line about a value begins with the value's place and path of keys: `server.yml:12: server.drain: …`. A value from the
environment has the name of its variable as the place. Other lines begin with a file, a key or the id of an app, or only have
a message.
"""

import re
from collections.abc import Container, Iterable
from typing import Literal

import msgspec

Level = Literal["error", "warning", "note"]

_PLACE = re.compile(r"(?P<file>[^\n]+?):(?P<line>[0-9]+): (?:(?P<key>[^ :]+): )?(?P<message>.*)\Z", re.DOTALL)
_VARIABLE = re.compile(r"(?P<variable>PUSH1ST_[A-Z0-9_]+): (?:(?P<key>[^ :]+): )?(?P<message>.*)\Z", re.DOTALL)
_START = re.compile(r"(?P<start>[^:\n]+): (?P<message>.*)\Z", re.DOTALL)
_KEY = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+\Z")


class Finding(msgspec.Struct, frozen=True):
    """A line about a configuration.

    level: `error`: the server does not start; `warning`: a setting that has no effect, or is probably a mistake; `note`: other
    information.
    file: the file's name, relative to the folder of the configuration file; None for other places.
    line: the number of the line, from 1; None if the finding concerns the whole file, or no file.
    variable: the environment variable; None for other places.
    key: the path of keys, such as `server.drain` or `shop.secret`, or the id of an app; None if the finding concerns no key.
    message: the text without the place and the key.
    """

    level: Level
    file: str | None
    line: int | None
    variable: str | None
    key: str | None
    message: str


def divided(level: Level, lines: Iterable[str], apps: Container[str] = (), source: str = "") -> list[Finding]:
    """Returns the lines as findings.

    apps: the ids of the apps.
    source: the path of the configuration file, as it stands at the beginning of lines about the whole file.
    """
    return [_finding(level, line, apps, source) for line in lines]


def _finding(level: Level, line: str, apps: Container[str], source: str) -> Finding:
    found = _PLACE.match(line)
    if found and (level != "note" or _KEY.match(found["key"] or "")):  # a note may begin with an address that has a port
        return Finding(level, found["file"], int(found["line"]), None, found["key"], found["message"])
    if found := _VARIABLE.match(line):
        return Finding(level, None, None, found["variable"], found["key"], found["message"])
    if found := _START.match(line):
        start, message = found["start"], found["message"]
        if start == source or start.endswith((".yml", ".yaml")):
            return Finding(level, start, None, None, None, message)
        if start in apps or _KEY.match(start):
            return Finding(level, None, None, None, start, message)
    return Finding(level, None, None, None, None, line)
