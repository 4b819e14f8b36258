"""Logging: events with fields, as text for people or as JSON, one object a line, for machines.

It must not know what is logged. Everything goes one way: our own loggers and those of libraries (asyncio, websockets, …)
end in one handler, one list of processors and one stream. The last processor before rendering takes secrets out, so that
no caller has to remember to (design, rule 13): fields that are named like a secret, and `token=…`, `auth=…` and the like
within any text, such as a logged URL or a traceback.

    log = logs.get(__name__)
    log.info("listening", address="127.0.0.1:6001")
"""

import logging
import re
from collections.abc import Mapping
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK: Final = "…"
"""what stands where a secret stood"""
DEPTH: Final = 8
"""levels of nested lists and mappings that are logged; deeper ones become MASK"""

_SECRET_NAME = re.compile(r"(.*[_-])?(secret|token|auth|authorization|password|auth[_-]signature|auth[_-]key)\Z", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"""(?ix)
    (
        (?<![A-Za-z0-9])                                    # not within a word: `author=`
        (?:[a-z]+[_-])? (?:token|auth|auth_signature|secret|password|authorization)
        ["']? (?:=|:\s|:(?=["']))\s* ["']? (?:Bearer\s+|Basic\s+)?
    )
    [^\s&"'<>,;]+
    """
)
