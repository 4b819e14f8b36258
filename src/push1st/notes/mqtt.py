"""Describes the rights of anonymous MQTT clients, and the end of MQTT sessions. Pure."""

from collections.abc import Iterator

from push1st.config.model import AppConfig, Config, some


def lines(config: Config) -> list[str]:
    """Returns lines about the connections and the apps of MQTT clients, and about the rights of anonymous clients."""
    mqtt = config.server.mqtt
    if "mqtt" not in config.server.proto:
        return []
    default = f"app {mqtt.app} for user names without the key of an app" if mqtt.app else "no app for user names without a key"
    if "public" in mqtt.anonymous_push:
        publish = "anonymous clients may publish to public channels"
    else:
        reason = "has no public" if mqtt.anonymous_push else "is not set"
        publish = f"anonymous clients may not publish: server.mqtt.push {reason}"
    found = [f"MQTT: {default}", f"MQTT: {publish}"]
    if mqtt.proxy_protocol and any(address.scheme != "unix" for address in mqtt.listen):
        found.insert(0, "MQTT: connections to tcp:// and tls:// must begin with a PROXY header of one of server.proxies")
    if config.server.listen:
        path = mqtt.path.rstrip("/")
        found.insert(0, f"MQTT: WebSockets with the path {path or '/'} or {path}{config.server.app_path}KEY")
    return found


def notes(config: Config) -> Iterator[str]:
    """Yields a line for each property of TLS and of sessions that an operator may not expect."""
    if "mqtt" not in config.server.proto:
        return
    if config.server.mqtt.is_secure and not config.server.mqtt.ssl.cert:
        yield (
            "server.mqtt.ssl: there is no certificate, so MQTT clients on tls:// get a self-signed one, which they reject unless "
            "they are configured to accept it: set cert and key"
        )
    if not config.server.mqtt.session_expiry:
        return
    if not config.has_broker:
        yield (
            "MQTT sessions and retained messages are lost when the server stops, because its memory keeps them: to keep them "
            "longer, set broker to the URL of a Redis or Valkey server"
        )
    if ids := [app.id for app in config.apps if admits_anonymous(app)]:
        yield (
            f"{some(ids)}: MQTT clients may connect anonymously, and any client with the same client id takes over the session "
            "of an anonymous client, with its messages: to reject anonymous clients, set options.authorized-only, or let "
            "your backend decide about connections (authorize)"
        )


def admits_anonymous(app: AppConfig) -> bool:
    """Returns whether MQTT clients without a token, a certificate and a decision of a backend may connect to an app."""
    return app.enable and not app.authorized_only and not any("connect" in one.on for one in app.authorize)
