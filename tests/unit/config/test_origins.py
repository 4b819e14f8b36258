"""Entries of `origins`: the forms that browsers send, and corrections of other forms."""

import pytest

from push1st.config.origins import as_sent, note_on
from push1st.transports.admission import origin_allowed


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "null",
        "file://",
        "https://shop.example",
        "HTTPS://Shop.Example/",
        "http://localhost:3000",
        "https://shop.example:8443",
        "http://shop.example:443",
        "shop.example",
        "shop.example:8080",
        "localhost",
        "127.0.0.1",
        "http://[::1]:8080",
        "[::1]",
        "https://xn--mller-kva.example",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "capacitor://localhost",
    ],
)
def test_an_origin_that_browsers_send_gets_no_note(entry):
    assert note_on(entry) == ""
    assert origin_allowed(as_sent(entry) if "://" in entry else f"https://{as_sent(entry)}", (entry,))


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ("https://shop.example:443", "https://shop.example"),
        ("http://shop.example:80/", "http://shop.example"),
        ("shop.example:443", "shop.example"),
        ("https://shop.example/app", "https://shop.example"),
        ("shop.example/app?x=1#y", "shop.example"),
        ("https://user@shop.example", "https://shop.example"),
        ("wss://shop.example", "https://shop.example"),
        ("ws://localhost:6001", "http://localhost:6001"),
        ("müller.example", "xn--mller-kva.example"),
        ("https://MU\u0308LLER.example:443", "https://xn--mller-kva.example"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("https://shop.example:", "https://shop.example"),
    ],
)
def test_an_origin_in_another_form_is_noted_with_the_form_that_browsers_send(entry, sent):
    assert note_on(entry) == f'found "{entry}", but browsers send "{sent}"'
    assert note_on(sent) == ""


@pytest.mark.parametrize(
    "entry",
    ["https://*.shop.example", "*.shop.example", "https://", "::1", "https://[shop.example]", "https://a:b", "a,b", ":80"],
)
def test_an_entry_that_is_not_an_origin_is_noted(entry):
    assert note_on(entry).startswith(f'found "{entry}", but browsers send one whole origin')
