"""The section `console` of the configuration."""

import pytest

from push1st.config.console import exposed
from push1st.config.model import ConsoleConfig

HASH = "scrypt$16384$8$1$81cQF1-WDiL2nPzVbPudaw$Xmpc-xGAy4gKNv_GGCB5qazxzJUq1hSZS_0m203dW2M"
PASSWORD = "hunter2hunter2"


def test_console_is_off_by_default(reading):
    console = reading("").console
    assert console == ConsoleConfig()
    assert console.listens == ()


def test_console_with_a_password_listens_on_this_machine_only(reading):
    console = reading(f"console: {{ password: {PASSWORD} }}").console
    assert [str(one) for one in console.listens] == ["tcp://127.0.0.1:6003"]
    assert reading(f"console: {{ password: {PASSWORD}, listen: false }}").console.listens == ()


def test_variables_set_the_console(reading):
    console = reading("", env={"PUSH1ST_CONSOLE_PASSWORD": HASH, "PUSH1ST_CONSOLE_LISTEN": "tcp://127.0.0.1:7003"}).console
    assert console.password == HASH
    assert [str(one) for one in console.listens] == ["tcp://127.0.0.1:7003"]


def test_variable_that_overrides_the_password_of_the_file_has_a_warning(reading):
    text, env = f"console: {{ password: {HASH} }}", {"PUSH1ST_CONSOLE_PASSWORD": PASSWORD}
    config = reading(text, env=env)
    assert config.console.password == PASSWORD
    (line,) = notes(config)
    assert line.startswith("PUSH1ST_CONSOLE_PASSWORD: console.password: overrides server.yml:1; ")
    assert PASSWORD not in line
    for other, variables in ((text, {"PUSH1ST_CONSOLE_PASSWORD": HASH}), (text, {}), ("", env), ("console: { password: }", env)):
        assert notes(reading(other, env=variables)) == [], (other, variables)


@pytest.mark.parametrize("good", [PASSWORD, HASH, "twelve chars", "x" * 512, "é" * 12, HASH.replace("16384", "65536")])
def test_password_is_clear_text_or_a_hash(reading, good):
    assert reading(f"console: {{ password: '{good}' }}").console.password == good


@pytest.mark.parametrize(
    "bad",
    [
        "hunter2",
        "hunter2 abc",
        f"hunter2{'x' * 512}",
        "'hunter2\thunter2 hunter2'",
        "[ hunter2hunter2 ]",
        "{ hunter2: hunter2 }",
        "scrypt$hunter2hunter2hunter2",
        HASH.replace("16384", "2").replace("X", "hunter2"),
        HASH.replace("$8$", "$64$") + "hunter2",
        HASH[:-5] + "hunter2",
    ],
)
def test_other_passwords_are_mistakes_whose_text_shows_no_password(wrong, bad):
    (line,) = wrong(f"console: {{ password: {bad} }}")
    assert line.startswith("server.yml:1: console.password")
    assert "12 to 512 characters, or the output of push1st console password" in line
    assert "hunter2" not in line


def test_password_is_hidden_in_a_printed_configuration(reading):
    config = reading(f"console: {{ password: {PASSWORD} }}")
    assert PASSWORD not in repr(config)
    assert PASSWORD not in str(list(config.__rich_repr__()))


@pytest.mark.parametrize(
    "safe",
    [
        "listen: tcp://127.0.0.1:1",
        "listen: tcp://127.9.9.9:1",
        "listen: 'tcp://[::1]:1'",
        "listen: tcp://localhost:1",
        "listen: unix://console",
        "listen: tcp://*:1, ssl: { enable: true }",
        "listen: tcp://*:1, origin: https://console.example, proxies: 10.0.0.1",
    ],
)
def test_address_is_permitted_if_the_password_is_encrypted_on_the_network(reading, safe):
    assert reading(f"console: {{ password: {PASSWORD}, {safe} }}").console.listens


@pytest.mark.parametrize(
    "unsafe",
    [
        "listen: tcp://*:1",
        "listen: tcp://0.0.0.0:1",
        "listen: 'tcp://[::]:1'",
        "listen: tcp://10.0.0.1:1",
        "listen: tcp://console.example:1",
        "listen: [ tcp://127.0.0.1:1, tcp://10.0.0.1:1 ]",
        "listen: tcp://*:1, origin: http://console.example",
    ],
)
def test_address_at_which_the_password_travels_in_clear_text_is_a_mistake(wrong, unsafe):
    (line,) = wrong(f"console: {{ password: {PASSWORD}, {unsafe} }}")
    assert line.startswith("server.yml:1: console.listen: found tcp://")
    assert "would travel in clear text" in line
    assert PASSWORD not in line


def test_exposed_address_is_the_first_that_other_machines_reach(reading):
    assert exposed(ConsoleConfig()) is None


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://console.example", "https://console.example"),
        ("HTTPS://Console.Example/", "https://console.example"),
        ("https://console.example:443", "https://console.example"),
        ("https://console.example:8443", "https://console.example:8443"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_origin_has_the_form_that_browsers_send(reading, text, origin):
    assert reading(f"console: {{ password: {PASSWORD}, origin: '{text}' }}").console.origin == origin


@pytest.mark.parametrize(
    "text", ["console.example", "https://", "https://a/console", "ftp://a", "https://u:p@a", "*", "null", "https://a?b"]
)
def test_other_origins_are_mistakes(wrong, text):
    (line,) = wrong(f"console: {{ password: {PASSWORD}, origin: '{text}' }}")
    assert "the origin of the console in browsers" in line


def notes(config) -> list[str]:
    return [line for line in config.warnings if "console" in line]


def test_section_without_a_password_has_a_note(reading):
    (note,) = notes(reading("console: { listen: tcp://127.0.0.1:1 }"))
    assert note == "server.yml:1: console: has no effect without console.password, so there is no console"
    (note,) = notes(reading(f"console: {{ password: {PASSWORD}, listen: false }}"))
    assert note.endswith("console.listen is switched off, so there is no console")
    assert notes(reading("")) == notes(reading(f"console: {{ password: {PASSWORD} }}")) == []


def test_origin_without_its_proxy_has_a_note(reading):
    (note,) = notes(reading(f"console: {{ password: {PASSWORD}, origin: https://a.example }}"))
    assert note.startswith("server.yml:1: console.origin: without console.proxies, all operators behind the proxy count as one")
    assert notes(reading(f"console: {{ password: {PASSWORD}, origin: https://a.example, proxies: 127.0.0.1 }}")) == []
    assert notes(reading(f"console: {{ password: {PASSWORD}, origin: https://a.example, ssl: {{ enable: true }} }}")) == []


def test_origin_without_tls_has_a_note(reading):
    (note,) = notes(reading(f"console: {{ password: {PASSWORD}, origin: http://a.example, proxies: 127.0.0.1 }}"))
    assert note.endswith("without https://, the password travels to the proxy in clear text")
    assert notes(reading(f"console: {{ password: {PASSWORD}, origin: http://localhost:81, proxies: 127.0.0.1 }}")) == []


def test_files_of_a_certificate_must_exist(wrong):
    (line,) = wrong(f"console: {{ password: {PASSWORD}, ssl: {{ enable: true, key: no.key, cert: no.pem }} }}")[:1]
    assert "the path of a file that exists" in line


def test_certificate_that_is_not_enabled_has_a_note(reading):
    found = reading(f"console: {{ password: {PASSWORD}, ssl: {{ key: a, cert: b }} }}").warnings
    assert any("console.ssl: cert and key have no effect without enable: true" in line for line in found)
