"""Two listeners with the same address."""

import pytest

APP = "a: { key: b, secret: a-secret-of-more-than-32-characters }"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "api: { listen: tcp://*:6001 }",
            "1: api.listen: found tcp://*:6001, allowed: an address that server.listen (tcp://*:6001)",
        ),
        (
            "server: { listen: tcp://*:1 }\napi: { listen: [ tcp://*:2, 'tcp://127.0.0.1:1' ] }",
            "2: api.listen: found tcp://127.0.0.1:1, allowed: an address that server.listen (tcp://*:1)",
        ),
        (
            "server: { listen: tcp://127.0.0.1:6002 }",
            "1: server.listen: found tcp://127.0.0.1:6002, allowed: an address that api.listen (tcp://127.0.0.1:6002)",
        ),
        (
            "api: { listen: unix:///run/a }\nmetrics: { listen: unix:///run/a }",
            "2: metrics.listen: found unix:///run/a, allowed: an address that api.listen (unix:///run/a)",
        ),
        (
            "server: { proto: [ mqtt ], mqtt: { listen: [ tcp://*:1883, tls://*:1883 ] } }",
            "1: server.mqtt.listen: found tls://*:1883, allowed: an address that server.mqtt.listen (tcp://*:1883)",
        ),
        (
            "console: { password: a long password, listen: 'tcp://localhost:6002' }",
            "1: console.listen: found tcp://localhost:6002, allowed: an address that api.listen (tcp://127.0.0.1:6002)",
        ),
        (
            "server: { listen: tcp://0.0.0.0:1 }\napi: { listen: tcp://localhost:1 }",
            "2: api.listen: found tcp://localhost:1, allowed: an address that server.listen (tcp://0.0.0.0:1)",
        ),
        (
            "server: { listen: 'tcp://[::]:1' }\napi: { listen: 'tcp://[::1]:1' }",
            "2: api.listen: found tcp://[::1]:1, allowed: an address that server.listen (tcp://[::]:1)",
        ),
        (
            "server: { listen: 'tcp://0.0.0.0:1' }\napi: { listen: 'tcp://10.0.0.1:1' }",
            "2: api.listen: found tcp://10.0.0.1:1, allowed: an address that server.listen (tcp://0.0.0.0:1)",
        ),
    ],
)
def test_address_belongs_to_one_listener(wrong, text, line):
    (found,) = wrong(text, APP)
    assert found.endswith(f"server.yml:{line} does not have")


@pytest.mark.parametrize(
    "text",
    [
        "server: { listen: tcp://127.0.0.1:0 }\napi: { listen: tcp://127.0.0.1:0 }",
        "server: { listen: tcp://10.0.0.1:1 }\napi: { listen: [ 'tcp://127.0.0.1:1', 'tcp://[::1]:1' ] }",
        "server: { listen: 'tcp://[::]:1' }\napi: { listen: tcp://127.0.0.1:1 }",
        "console: { listen: tcp://127.0.0.1:6001 }",
        "server: { listen: tcp://127.0.0.2:1 }\napi: { listen: tcp://localhost:1 }",
        "server: { mqtt: { listen: tcp://*:6001 }, proto: [ pusher ] }",
        "server: { listen: [ 'tcp://*:1', 'tcp://*:1' ] }",
    ],
)
def test_other_addresses_do_not_overlap(reading, text):
    assert reading(text, APP).apps
