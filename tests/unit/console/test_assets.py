"""The files of the console's pages: paths, compression and tags."""

import gzip
import re
from importlib.resources import files

import pytest

from push1st.console.assets import INDEX, Assets

MAX_FILES = 25
MAX_ZIPPED_BYTES = 60 << 10
ASSETS = Assets()
FOLDER = files("push1st.console") / "static"


def served() -> list[str]:
    return list(ASSETS._assets)


def answer(path: str, accepted: bytes = b"", known: bytes = b""):
    found = ASSETS.find(path, accepted, known)
    assert found is not None, path
    return found


def tag(headers: bytes) -> bytes:
    return headers.partition(b"ETag: ")[2].partition(b"\r")[0]


def test_page_is_at_the_root_and_refers_to_files_that_exist():
    page = answer("")
    assert page.content_type == b"text/html; charset=utf-8"
    assert b"Cache-Control: no-cache\r\n" in page.headers
    assert answer(INDEX) == page
    links = re.findall(r'(?:src|href)="([^"#]*)"', page.body.decode())
    assert links
    assert [link for link in links if link not in served()] == []
    assert all(link.startswith(f"static/{ASSETS.hash}/") for link in links), "relative, so that a proxy may add a path"


def test_page_has_no_script_and_no_style_of_its_own():
    body = answer("").body.decode()
    assert re.findall(r"<script(?![^>]* src=)", body) == []
    assert "<style" not in body
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", body)


def test_files_are_immutable_below_their_hash():
    assert re.fullmatch("[0-9a-f]{12}", ASSETS.hash)
    for path in served():
        found = answer(path)
        assert b"Cache-Control: public, max-age=31536000, immutable\r\n" in found.headers
        assert re.fullmatch(rb'"[0-9a-f]{32}"', tag(found.headers))


def test_compressed_answer_has_the_same_content_and_another_tag():
    for path in ("", *served()):
        plain, zipped = answer(path), answer(path, b"br, gzip")
        assert gzip.decompress(zipped.body) == plain.body
        assert b"Content-Encoding: gzip\r\n" in zipped.headers
        assert b"Vary: Accept-Encoding\r\n" in plain.headers
        assert tag(zipped.headers) != tag(plain.headers)


def test_answer_is_not_compressed_for_a_client_that_excludes_it():
    for accepted in (b"", b"br", b"gzip;q=0, identity", b"gzip; q=0"):
        assert b"Content-Encoding" not in answer("", accepted).headers


def test_known_file_is_answered_with_304():
    for accepted in (b"", b"gzip"):
        known = tag(answer("", accepted).headers)
        assert answer("", accepted, known).status == 304
        assert answer("", accepted, b'"other", ' + known).status == 304
        assert answer("", accepted, b'"other"').status == 200


@pytest.mark.parametrize(
    "path", ["static", "static/", "static/../site.py", "site.py", "static/%2e%2e/site.py", "static/000000000000/console.css"]
)
def test_nothing_else_is_served(path):
    assert ASSETS.find(path, b"", b"") is None


def test_assets_are_few_and_small():
    assert len(served()) + 1 <= MAX_FILES
    assert sum(len(answer(path, b"gzip").body) for path in ("", *served())) <= MAX_ZIPPED_BYTES


FORBIDDEN = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
ABSOLUTE = re.compile(r"""(?:from|import)\s*\(?["'](?!\./|\.\./)""")


def test_scripts_do_not_use_what_the_content_security_policy_forbids():
    for path in served():
        if path.endswith(".js") and "/vendor/" not in path:
            text = answer(path).body.decode()
            assert not FORBIDDEN.search(text), path
            assert not ABSOLUTE.search(text), f"{path}: imports must be relative"
