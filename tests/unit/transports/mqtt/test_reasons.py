"""The reason codes for the server's own codes."""

import pytest

from push1st.errors import LimitReached, Refused
from push1st.protocols.mqtt.packets import ReasonCode
from push1st.transports.mqtt import reasons

DISCONNECT_CODES = {*range(0x80, 0x84), 0x87, 0x89, 0x8B, *range(0x8D, 0x91), *range(0x93, 0xA3)}
"""the reason codes from 80 on that a DISCONNECT of the server may have (§3.14.2.1)"""


def test_close_codes() -> None:
    assert [reasons.of_connect(code) for code in (4001, 4003, 4004, 4009, 4100, 4200)] == [0x86, 0x87, 0x97, 0x87, 0x88, 0x88]
    assert [reasons.of_disconnect(code) for code in (1008, 1011, 4003, 4009, 4100, 4200)] == [0x97, 0x80, 0x87, 0x98, 0x97, 0x8B]


@pytest.mark.parametrize("code", [*range(0x80, 0x100), *range(1000, 1016), *range(4000, 4400)])
def test_packets_have_only_their_own_reason_codes(code: int) -> None:
    assert reasons.of_connect(code) in reasons.CONNACK_CODES
    assert reasons.of_disconnect(code) in DISCONNECT_CODES
    for permitted in (reasons.SUBACK_CODES, reasons.PUBLISH_CODES):
        assert reasons.of_refused(Refused(code, ""), permitted) in permitted
        assert reasons.of_refused(LimitReached(code, ""), permitted) in permitted


def test_codes_of_a_backend_are_used_where_the_packet_has_them() -> None:
    assert reasons.of_connect(0x8A) == 0x8A
    assert reasons.of_connect(0x8E) == 0x87
    assert reasons.of_refused(Refused(0x8F, ""), reasons.SUBACK_CODES) == 0x8F
    assert reasons.of_refused(Refused(0x8F, ""), reasons.PUBLISH_CODES) == 0x87


def test_rejections() -> None:
    refused = (Refused(401, ""), Refused(403, ""), LimitReached(403, ""), Refused(413, ""), Refused(503, ""))
    assert [reasons.of_refused(one, reasons.PUBLISH_CODES) for one in refused] == [0x87, 0x87, 0x97, 0x97, 0x80]


def test_label_is_the_name_of_the_reason_code() -> None:
    assert reasons.label(ReasonCode.BAD_USER_NAME_OR_PASSWORD) == "bad-user-name-or-password"
