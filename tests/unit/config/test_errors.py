"""The error text of each mistake in a configuration."""

import pytest

from push1st.config import tree
from push1st.config.load import load
from push1st.errors import ConfigError


def test_all_problems_are_listed_in_order(wrong):
    lines = wrong(
        "server:\n  drain: x\n  pusher: { activity-timeout: -1, path: 5 }\n  proto: [ pusher, http, ws ]\nlog: 1\nbroker: x",
        "a: { key: [], limits: { members: -1 } }",
        "a b: 1\nc: { key: c, secret: [] }",
        "d: [",
    )
    assert [line.split(": found")[0] for line in lines] == [
        "apps/2.yml:1",
        "server.yml:2: server.drain",
        "server.yml:3: server.pusher.activity-timeout",
        "server.yml:3: server.pusher.path",
        "server.yml:4: server.proto",
        "server.yml:4: server.proto",
        "server.yml:5: log",
        "server.yml:6: broker",
        "apps/0.yml:1: a.key",
        "apps/0.yml:1: a.limits.members",
        "apps/1.yml:1: …",
        "apps/1.yml:2: c.secret",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "server:\n  pusher:\n    activity-timeout: x",
            '3: server.pusher.activity-timeout: found "x" (text), allowed: a whole number of seconds from 1 to 86400',
        ),
        (
            "server: { drain: 010 }",
            '1: server.drain: found "010" (a whole number), allowed: a whole number of seconds from 0 to 3600',
        ),
        (
            "server: { drain: 1.5 }",
            '1: server.drain: found "1.5" (a number or date), allowed: a whole number of seconds from 0 to 3600',
        ),
        ('server: { drain: "5" }', '1: server.drain: found "5" (text), allowed: a whole number of seconds from 0 to 3600'),
        (
            "server: { workers: 0 }",
            '1: server.workers: found "0" (a whole number), allowed: a whole number from 1 to 1024, or auto',
        ),
        ("server: { drain: [ 5 ] }", "1: server.drain: found a list, allowed: a whole number of seconds from 0 to 3600"),
        ("server: [ ]", "1: server: found a list, allowed: a section with the keys proto, listen, ssl, app-path, pusher, "),
        ("server: { proto: http }", '1: server.proto: found "http" (text), allowed: pusher or websocket or mqtt or sse'),
        (
            "server: { proto: { a: 1 } }",
            "1: server.proto: found a section of keys, allowed: a list of pusher or websocket or mqtt or sse",
        ),
        (
            "server: { pusher: { push: [ secret ] } }",
            '1: server.pusher.push: found "secret" (text), allowed: public or private or',
        ),
        ("server: { ssl: { enable: maybe } }", '1: server.ssl.enable: found "maybe" (text), allowed: true or false'),
        ('server: { ssl: { enable: "true" } }', '1: server.ssl.enable: found "true" (text), allowed: true or false'),
        (
            "server: { listen: 6001 }",
            '1: server.listen: found "6001" (a whole number), allowed: tcp://HOST:PORT, unix://PATH or false',
        ),
        ("server: { listen: true }", '1: server.listen: found "true" (true or false), allowed: tcp://HOST:PORT, unix://PATH or'),
        ("api:\n  listen:\n    - tcp://*:1\n    - http://x", '4: api.listen: found "http://x" (text), allowed: tcp://HOST:PORT'),
        ("server: { app-path: a b }", '1: server.app-path: found "a b" (text), allowed: a path such as /app/'),
        ("server: { proxies: [ 10.0.0.1/8 ] }", '1: server.proxies: found "10.0.0.1/8" (text), allowed: a network whose address'),
        ("server: { proxies: [ unix ] }", '1: server.proxies: found "unix" (text), allowed: an IP address, or a network'),
        ("api: { interface: other }", '1: api.interface: found "other" (text), allowed: pusher'),
        ("log: { format: xml }", '1: log.format: found "xml" (text), allowed: text or json'),
        ("log: { level: 5 }", '1: log.level: found "5" (a whole number), allowed: debug or info or warning or error'),
        ("log: { file: { verbos: 5 } }", "1: log.file.verbos: unknown key, did you mean verbose?"),
        ("server: { lisen: x }", "1: server.lisen: unknown key, did you mean listen?"),
        ("apis: 1", "1: apis: unknown key, did you mean api?"),
        ("xyz: 1", "1: xyz: unknown key, allowed: server, api, broker, log, hooks, metrics, console, credentials, cluster, ssl"),
        ("api: { module: { sms: 1 } }", "1: api.module.sms: unknown key, allowed: smpp"),
        ("server: { listen: !x tcp://*:1 }", '1: server.listen: found "tcp://*:1" (a number or date), allowed: tcp://HOST:PORT'),
        ("server: { app-path: 'a\\tb', proxies: \"\\u0007\" }", "1: server.app-path: found"),
        ("a\n", "1: found text, allowed: a section of keys"),
        ("[ a ]", "1: found a list, allowed: a section of keys"),
        ("{ [ a ]: 1 }", "1: found a list, allowed: text as a key"),
        ("server: { <<: 5 }", "1: server: found a whole number, allowed: a section of keys to merge"),
        ("---\na: 1\n---\nb: 2", "3: found no YAML (but found another document), allowed: YAML"),
        ("server: { listen: *:6001 }", "1: found no YAML ("),
        ("server: {\n", "2: found the end of the file after [ or {, allowed: one ] or } for each of them"),
        (
            "api: { listen: [ tcp://*:1 }",
            "1: found neither a comma nor ] for the [, allowed: commas between the values, and ] after",
        ),
        ("api:\n  listen: [ tcp://*:1\nserver:\n  drain: 1", "3: found neither a comma nor ] for the [ of line 2, allowed: "),
        ("api: { listen: tcp://*:1\n", "2: found neither a comma nor } for the { of line 1, allowed: commas between"),
        ("server:\n  drain: 1\n  workers:2\n  listen: x", "3: found a colon without a space after it, allowed: KEY: VALUE"),
        ("server:\n  workers:2\n  listen: x", "2: found a colon without a space after it, allowed: KEY: VALUE"),
        ("server:\n  listen:tcp://*:1\n  drain: 2", "2: found a colon without a space after it, allowed: KEY: VALUE"),
        ("server:\n  workers:2", "1: server: found a colon without a space after it, allowed: KEY: VALUE"),
        ("server: { drain:2 }", "1: server.…: found drain: without a space after the colon, allowed: drain: VALUE"),
        ("server:\n  drain: 1\n  workers\n  listen: x", "3: found a key without a colon, allowed: KEY: VALUE"),
        ("server:\n  drain: 1\n   workers: 2", "3: found a colon too many, or a wrong indentation, allowed: KEY: VALUE"),
        ("server:\n  drain: 1\n workers: 2", "3: found an indentation that fits no section, allowed: the same number of spaces"),
        ("log: { level: 'info }\n", "1: found a quotation mark without a second one, allowed: "),
        ("server: { listen: tcp://*:70000 }", '1: server.listen: found "tcp://*:70000" (text), allowed: a port from 0 to 65535'),
        (
            "server: { ssl: true }",
            '1: server.ssl: found "true" (true or false), allowed: a section with the keys enable, key, cert, such as ssl',
        ),
        (
            "log: { level: warn }",
            '1: log.level: found "warn" (text), allowed: debug or info or warning or error; did you mean warning?',
        ),
        (
            "server: { ssl: { enable: ture } }",
            '1: server.ssl.enable: found "ture" (text), allowed: true or false; did you mean true?',
        ),
        (
            'server: { ssl: { enable: "yes" } }',
            '1: server.ssl.enable: found "yes" (text), allowed: true or false, without quotes',
        ),
        ("workers: 2", "1: workers: unknown key, did you mean server.workers?"),
        (
            "listen: tcp://*:1",
            "1: listen: unknown key, did you mean server.listen or api.listen or metrics.listen or console.listen?",
        ),
        ("apps: [ { id: a } ]", "1: apps: unknown key, allowed: apps in files of their own, under credentials: [ apps/*.yml ]"),
        ("broker: redis:127.0.0.1:6379", "1: broker: found a URL without // after its first colon, allowed: memory, "),
        ("server:\n\tdrain: 1\n", "2: found a tab, allowed: spaces"),
        ("server:\n  drain: 1\n\tlisten: tcp://*:1\n", "3: found a tab, allowed: spaces"),
        ("server:\n  - a\n\n  \tdrain: 1\n  x: y\n", "4: found a tab, allowed: spaces"),
    ],
)
def test_error_names_line_path_the_found_value_and_the_allowed_values(wrong, text, line):
    assert wrong(text)[0].startswith("server.yml:" + line)


def test_characters_that_yaml_does_not_allow_are_an_error(wrong):
    assert wrong("a: \x01")[0].startswith("server.yml: found no YAML (characters that are not allowed), allowed: YAML")


def test_duplicate_key_is_an_error_and_the_other_keys_are_checked(wrong):
    assert wrong("server:\n  drain: 1\n  drain: 2\n  outbox: x", "a: { key: k, secret: s, key: l }\na: { }") == [
        "server.yml:3: server.drain: found a second time, first at server.yml:2, allowed: each key once",
        "apps/0.yml:1: a.key: found a second time, first at apps/0.yml:1, allowed: each key once",
        "apps/0.yml:2: a: found a second time, first at apps/0.yml:1, allowed: each key once",
        'server.yml:4: server.outbox: found "x" (text), allowed: a whole number of bytes from 4096 to 1073741824',
    ]


def test_a_key_without_effect_is_never_suggested(wrong):
    assert wrong("", "app: { enabl: true, enbal: true, key: k, secret: s }") == [
        "apps/0.yml:1: app.enabl: unknown key, did you mean enable?",
        "apps/0.yml:1: app.enbal: unknown key, did you mean enable?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "app: { key: k, webhooks: https://h/ }",
            "1: app.webhooks: found text, allowed: a list of sections, such as webhooks: [ { url: https://HOST/PATH } ]",
        ),
        (
            "app: { key: k, webhooks: [ https://h/ ] }",
            "1: app.webhooks: found text, allowed: a list of sections, such as webhooks: ",
        ),
        (
            "app: { key: k, authorize: https://h/ }",
            "1: app.authorize: found text, allowed: a list of sections, such as authorize: { url",
        ),
        ("app: { key: k, hook: https://h/ }", "1: app.hook: found text, allowed: a section with the keys trigger, endpoint, "),
        ("apps: [ { id: a } ]", "1: apps: found a list, allowed: an app, which is a section under its id, such as shop: { key: "),
        ("key: k", "1: key: found text, allowed: an app, which is a section under its id, such as shop: { key: "),
        ("app: { key: k, client-messages: true }", "1: app.client-messages: unknown key, did you mean options.client-messages?"),
        (
            "app: { key: k, channels: [ privat ] }",
            '1: app.channels: found "privat" (text), allowed: public or private or presence or ',
        ),
        (
            "app: { key: k, webhooks: [ { url: http://h/, events: [ member_add ] } ] }",
            "1: app.webhooks.events: found member_add, ",
        ),
    ],
)
def test_error_in_an_app_shows_a_correct_example(wrong, text, line):
    assert wrong("", text)[0].startswith("apps/0.yml:" + line)


def test_list_of_known_keys_omits_keys_without_effect(wrong):
    (line,) = wrong("", "app: { key: k, limits: true }")
    assert line.startswith("apps/0.yml:1: app.limits: found")
    assert "threads" not in "".join(wrong("server: 5"))


def test_text_in_errors_is_short_and_printable(wrong):
    (line,) = wrong('server: { drain: "' + "a\\u202e\\x07" + "b" * 1000 + '" }')
    assert '"a\\u202e\\u0007bbb' in line
    assert len(line) < 200
    (line,) = wrong('? "a\\nb"\n: 1')
    assert line.startswith("server.yml:1: …: unknown key")


@pytest.mark.parametrize(
    "text",
    [
        "a: { key: k, secret: [ hunter2, hunter2 ] }",
        "a: { key: k, secret: { hunter2: 1 } }",
        'a: { key: k, secret: "hunter2\\0" }',
        "a: { key: k, secret: 2.5 , secret hunter2 }",
        "a: { key: k, secret: *hunter2 }",
        "a: { key: k, secret: !hunter2!x y }",
        "a: { key: k, secret: 'hunter2 }",
        "a: { key: k, secret: @hunter2 }",
        "a:\n  key: k\n  secret:hunter2\n",
        "a:\n  key: k\n    secret:hunter2\n",
        "a: hunter2",
        "hunter2",
        "a: { key: k, secret: s, hook: { endpoint: ftp://u:hunter2@h/ } }",
        "a: { key: k, secret: s, webhooks: [ { url: ftp://u:hunter2@h/ } ] }",
        "a: { key: k, secret: s, webhooks: [ hunter2 ] }",
        "a: { key: k, secret:hunter2 }",
        "a: { key: k, secret : s, other:hunter2 }",
        "secret:hunter2",
        "a: { key: k, secret: s, webhooks: [ { url: http://h/, headers: { Authorization: [ hunter2 ] } } ] }",
        "a: { key: k, secret: s, webhooks: [ { url: http://h/, headers: hunter2 } ] }",
    ],
)
def test_error_never_shows_a_secret(wrong, text):
    assert "hunter2" not in "".join(wrong("", text))


def test_error_never_shows_a_broker_url(wrong):
    assert "hunter2" not in "".join(wrong("broker: http://:hunter2@h/"))
    assert "hunter2" not in "".join(wrong("", env={"PUSH1ST_BROKER": "http://:hunter2@h/"}))


@pytest.mark.parametrize(
    "token", ["hunter2", '"hunter2 and more words"', "hunter2hunter2é123", "[ hunter2 ]", f"hunter2{'x' * 512}"]
)
def test_error_never_shows_the_token_of_the_metrics(wrong, token):
    (line,) = wrong(f"metrics: {{ token: {token} }}")
    assert line.startswith("server.yml:1: metrics.token: ")
    assert "16 to 512 visible ASCII characters" in line
    assert "hunter2" not in line


# Bounds


def test_missing_or_unreadable_file_is_an_error(tmp_path):
    for path in (tmp_path / "no.yml", tmp_path, str(tmp_path / "a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path, {})


def test_a_file_is_at_most_a_mebibyte(reading, wrong):
    reading("#" * (tree.MAX_BYTES - 1) + "\n")
    (line,) = wrong("#" * tree.MAX_BYTES + "\n")
    assert line == "server.yml: found more than 1048576 bytes, allowed: at most that many"


def test_a_file_is_utf_8(tmp_path):
    (tmp_path / "server.yml").write_bytes(b"server:\n  drain: \xff\n")
    with pytest.raises(ConfigError, match=r"server\.yml:2: found bytes that are not UTF-8"):
        load(tmp_path / "server.yml", {})


def test_aliases_cannot_expand_to_a_billion_values(wrong):
    bomb = "x0: &x0 [ a, a, a, a, a, a, a, a, a ]\n" + "".join(
        f"x{n}: &x{n} [ {', '.join([f'*x{n - 1}'] * 9)} ]\n" for n in range(1, 12)
    )
    assert any("aliases that repeat too much" in line for line in wrong(bomb))
    merges = "x0: &x0 { a: 1 }\n" + "".join(f"x{n}: &x{n} {{ <<: [ {', '.join([f'*x{n - 1}'] * 9)} ] }}\n" for n in range(1, 12))
    assert any("aliases that repeat too much" in line for line in wrong(merges))


@pytest.mark.parametrize("text", ["a: &a [ *a ]", "a: &a { b: *a }", "a: &a { <<: *a }", "a: &a { *a }"])
def test_an_alias_to_itself_is_an_error(wrong, text):
    assert any("aliases that repeat too much" in line for line in wrong(text))


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "[" * 1000 + "]" * 1000, "{a: " * 1000 + "}" * 1000])
def test_deep_nesting_is_an_error(wrong, text):
    (line,) = wrong(text)
    assert "more than 20 levels" in line


def test_an_escape_that_breaks_the_parser_is_an_error(wrong):
    assert "found no YAML" in wrong('a: "\\UFFFFFFFF"')[0]


def test_many_apps_in_one_file_load(reading):
    assert len(reading("", "".join(f"a{n}: {{ key: k{n}, secret: s }}\n" for n in range(3000))).apps) == 3000
