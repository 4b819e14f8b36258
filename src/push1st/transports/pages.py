"""Reads the name of a page from the path of a Pusher client: `/resume/PAGE/app/KEY` is `/app/KEY` with the page PAGE.

Stock pusher-js sends nothing else that stays the same when it reconnects: the option `wsPath`, and for the HTTP fallbacks
`httpPath`, is the beginning of every path.
"""

import re

from push1st.core.pages import PageConnection
from push1st.errors import Disconnect
from push1st.transports.context import EdgeContext

PREFIX = "(?:/+resume/([^/]*))?"
"""a pattern for the beginning of a path; its group is the name of the page"""
_PREFIX = re.compile(PREFIX)
_NAME = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")
NAME_ERROR = "Path not found: the name of a page has 16 to 64 characters of A-Za-z0-9_-"


def split_page(path: str) -> tuple[str | None, str]:
    """Returns the name of the page in a path, and the rest of the path. The name is None for a path without a page."""
    found = _PREFIX.match(path)
    return (None, path) if found is None else (found[1], path[found.end() :])


def is_page_name(name: str | None) -> bool:
    """Returns whether the name of a page is valid, or there is no page."""
    return name is None or _NAME.match(name) is not None


def connection_of(context: EdgeContext, name: str | None, ip: str) -> PageConnection | None:
    """Returns a new connection of a page; None for a client without a page. Raises Disconnect(4005) for an invalid name."""
    if not is_page_name(name):
        raise Disconnect(4005, NAME_ERROR)
    if name is None:
        return None
    return context.node.pages.connection(name, context.shared_address(ip))
