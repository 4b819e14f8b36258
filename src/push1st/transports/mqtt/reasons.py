"""Translates the server's codes to reason codes of MQTT 5.0. MQTT 3.1 and 3.1.1 have fewer codes, which `encode` derives."""

from push1st.errors import LimitReached, Refused
from push1st.hooks.events import MQTT_CODES
from push1st.protocols.mqtt.packets import ReasonCode

CONNECT_REASONS = {
    1011: ReasonCode.UNSPECIFIED_ERROR,
    4001: ReasonCode.BAD_USER_NAME_OR_PASSWORD,
    4004: ReasonCode.QUOTA_EXCEEDED,
    4100: ReasonCode.SERVER_UNAVAILABLE,
    4200: ReasonCode.SERVER_UNAVAILABLE,
}
"""the reason code of CONNACK for a close code; for other close codes, `NOT_AUTHORIZED`"""

DISCONNECT_REASONS = {
    1002: ReasonCode.PROTOCOL_ERROR,
    1003: ReasonCode.PROTOCOL_ERROR,
    1007: ReasonCode.PROTOCOL_ERROR,
    1008: ReasonCode.QUOTA_EXCEEDED,
    1011: ReasonCode.UNSPECIFIED_ERROR,
    4004: ReasonCode.QUOTA_EXCEEDED,
    4009: ReasonCode.ADMINISTRATIVE_ACTION,
    4100: ReasonCode.QUOTA_EXCEEDED,
    4200: ReasonCode.SERVER_SHUTTING_DOWN,
}
"""the reason code of DISCONNECT for a close code; for other close codes, `NOT_AUTHORIZED`"""

CONNACK_CODES = frozenset(
    (0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F)
)
"""the reason codes from 0x80 on that CONNACK may have (§3.2.2.2)"""
SUBACK_CODES = frozenset((0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2))
"""the reason codes from 0x80 on that SUBACK may have (§3.9.3)"""
PUBLISH_CODES = frozenset((0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
"""the reason codes from 0x80 on that PUBACK and PUBREC may have (§3.4.2.1, §3.5.2.1)"""


def of_connect(code: int) -> ReasonCode:
    """Returns the reason code for a CONNECT that is rejected with a close code, or with a code of the app's backend."""
    if code in MQTT_CODES:
        return ReasonCode(code) if code in CONNACK_CODES else ReasonCode.NOT_AUTHORIZED
    return CONNECT_REASONS.get(code, ReasonCode.NOT_AUTHORIZED)


def of_disconnect(code: int) -> ReasonCode:
    """Returns the reason code for a connection that the server closes with a close code."""
    return DISCONNECT_REASONS.get(code, ReasonCode.NOT_AUTHORIZED)


def of_refused(refused: Refused, permitted: frozenset[int]) -> ReasonCode:
    """Returns the reason code for a rejected filter or message.

    permitted: the reason codes that the answer may have. A code of the app's backend that the answer may not have becomes
    `NOT_AUTHORIZED`.
    """
    if refused.code in permitted:
        return ReasonCode(refused.code)
    if isinstance(refused, LimitReached) or refused.code in (413, 429):
        return ReasonCode.QUOTA_EXCEEDED
    if refused.code == 503:
        return ReasonCode.UNSPECIFIED_ERROR
    return ReasonCode.NOT_AUTHORIZED


def label(reason: ReasonCode) -> str:
    """Returns the name of a reason code, as a label of metrics: `not-authorized`."""
    return reason.name.lower().replace("_", "-")


def end_label(reason: ReasonCode) -> str:
    """Returns the name of a reason code of DISCONNECT, as a label of metrics. The code 0 has another name there (§3.14.2.1)."""
    return label(reason) if reason else "normal-disconnection"
