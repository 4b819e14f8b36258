"""The static files of the console, from the folder `static` of the package.

Every file is served below `static/HASH/`, where HASH names the content of all files, and browsers keep it for a year. Only
`index.html` is at a fixed path; it refers to the other files by paths that contain the hash. The comments of scripts and styles
are not sent; they also contain the types that TypeScript checks. Each line keeps its number.
"""

import gzip
import hashlib
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from urllib.parse import unquote

import msgspec

from push1st.console.guard import HEADERS
from push1st.messages import Response

INDEX = "index.html"
TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
"""the content types of the files by their extensions; other files, such as licences, are not served"""
COMMENT = re.compile(rb"/\*.*?\*/ ?", re.DOTALL)
VENDORED = "vendor/"
HASH_LENGTH = 12
GZIP_LEVEL = 9
IMMUTABLE = b"Cache-Control: public, max-age=31536000, immutable\r\n"
REVALIDATED = b"Cache-Control: no-cache\r\n"


class Asset(msgspec.Struct, frozen=True):
    """A file, with its compressed content."""

    type: bytes
    body: bytes
    zipped: bytes
    tag: str

    def answer(self, accepted: bytes, known: bytes, cache: bytes) -> Response:
        """Returns the answer to a request. `accepted`: the header Accept-Encoding. `known`: the header If-None-Match."""
        is_zipped = b"gzip" in accepted and b"gzip;q=0" not in accepted.replace(b" ", b"")
        tag = f'"{self.tag}-gzip"' if is_zipped else f'"{self.tag}"'
        encoding = b"Content-Encoding: gzip\r\n" if is_zipped else b""
        headers = b"%b%bETag: %b\r\nVary: Accept-Encoding\r\n%b" % (HEADERS, cache, tag.encode(), encoding)
        status = 304 if tag.encode() in known else 200
        return Response(status, self.zipped if is_zipped else self.body, self.type, headers)


class Assets:
    """The files of the console by their paths."""

    def __init__(self) -> None:
        found = dict(_files(files("push1st.console") / "static", ""))
        index = found.pop(INDEX)
        everything = hashlib.sha256()
        for path, body in sorted(found.items()):
            everything.update(b"%b %d " % (path.encode(), len(body)) + body)
        self.hash = everything.hexdigest()[:HASH_LENGTH]
        base = f"static/{self.hash}/"
        self._assets = {f"{base}{path}": _asset(path, body) for path, body in found.items() if _extension(path) in TYPES}
        self._index = _asset(INDEX, index.replace(b'="static/', f'="{base}'.encode()))

    def find(self, path: str, accepted: bytes, known: bytes) -> Response | None:
        """Returns the answer for a path without a slash at its beginning; None if there is no such file."""
        if path in ("", INDEX):
            return self._index.answer(accepted, known, REVALIDATED)
        asset = self._assets.get(unquote(path))
        return None if asset is None else asset.answer(accepted, known, IMMUTABLE)


def _files(folder: Traversable, above: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for one in folder.iterdir():
        if one.is_dir():
            found += _files(one, f"{above}{one.name}/")
        else:
            body = one.read_bytes()
            is_ours = above != VENDORED and _extension(one.name) in ("js", "css")
            found.append((f"{above}{one.name}", COMMENT.sub(_line_ends, body) if is_ours else body))
    return found


def _line_ends(comment: re.Match[bytes]) -> bytes:
    return b"\n" * comment[0].count(b"\n")


def _extension(path: str) -> str:
    return path.rpartition(".")[2]


def _asset(path: str, body: bytes) -> Asset:
    zipped = gzip.compress(body, GZIP_LEVEL, mtime=0)
    return Asset(TYPES[_extension(path)], body, zipped, hashlib.sha256(body).hexdigest()[:32])
