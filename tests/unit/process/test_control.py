"""The configuration that a worker receives equals that of the supervisor."""

from push1st.config.addresses import Listen, Networks
from push1st.config.model import AppConfig, Config, Hook, ServerConfig, Webhook, demo
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.limits import Limits
from push1st.process.control import pack, unpack


def test_configuration_decodes_as_it_was_encoded():
    config = Config(
        server=ServerConfig(
            listen=(Listen("tcp", "::1", 6001), Listen("unix", path="/a")),
            workers="auto",
            proxies=Networks.parse(["10.0.0.0/8"]),
            mqtt=Mqtt(
                listen=(Listen("tls", port=8883),), ssl=MqttSsl(ca="/ca", verify="optional"), whitelist=Networks.parse(["::1"])
            ),
        ),
        apps=(
            AppConfig(
                id="a",
                key="k",
                secret="s",
                origins=("https://a",),
                limits=Limits(members=3),
                hook=Hook(trigger=frozenset({"join"}), endpoint=("http://h/",)),
                webhooks=(Webhook(url="http://h/", headers=(("a", "b"),)),),
            ),
        ),
        broker="unix:///x",
        warnings=("careful",),
    )
    assert unpack(pack(config)) == config
    assert unpack(pack(demo())) == demo()
