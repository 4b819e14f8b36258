"""Fuzzes the configuration: any text loads, or raises a ConfigError that names lines and no secret."""

import tempfile
from functools import cache
from pathlib import Path
from random import Random

from fuzz.runner import main
from push1st.config.load import load
from push1st.config.model import Config, strictness
from push1st.errors import ConfigError

SECRET = b"s3cr3t-of-nobody"
SEEDS = [
    b"""ssl:
    - &default-ssl
      key:
      cert:
server:
    proto: [ pusher, mqtt, websocket ]
    threads: 5
    max-request-payload: 65400
    listen: tcp://*:6001
    ssl: { enable: false, *default-ssl }
    app-path: app/
    pusher:    { path: /pusher/, activity-timeout: 20, whitelist: [] }
    websocket: { path: /ws/, activity-timeout: 3600, push: { public, private, presence }, whitelist: [ 10.0.0.0/8, ::1 ] }
""",
    b"""api:
    keep-alive-timeout: 10
    interface: pusher
    path: /apps/
    listen: [ tcp://*:6002/, unix://opt/push1st.api ]
    trust: [ 127.0.0.0/8, ::1, unix ]
log: { format: text, level: info }
broker: memory
""",
    b"""server: { drain: 10, workers: auto, proxies: [ 10.0.0.0/8 ], outbox: 1048576 }
api: { <<: [ &a { path: /a/ }, *a ], listen: false }
cluster: { listen: disable }
""",
    b"""app-test:
  enable: true
  name: "Default"
  key: "app-key"
  secret: "s3cr3t-of-nobody"
  options: { client-messages: true, statistic: false }
  channels: [ public, private, presence ]
  origins: [ ]
  limits: { connections: 10, payload: 20000, client-events: 0 }
  hook:
    trigger: [ register, unregister, join, leave, push ]
    endpoint: [ http://127.0.0.1:8080/hook ]
""",
]


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="push1st-fuzz-"))


def run(data: bytes, random: Random) -> None:
    server, apps = (data, SEEDS[3]) if random.random() < 0.5 else (SEEDS[0], data)
    (folder() / "apps.yml").write_bytes(apps)
    (folder() / "server.yml").write_bytes(server + b"\ncredentials: apps.yml\n")
    try:
        config = load(folder() / "server.yml", {})
    except ConfigError as error:
        text = str(error)
        assert text
        assert SECRET.decode() not in text, "an error repeats a secret"
        return
    assert isinstance(config, Config)
    assert SECRET.decode() not in repr(config)
    for line in (*config.warnings, *strictness(config)):
        assert SECRET.decode() not in line


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
