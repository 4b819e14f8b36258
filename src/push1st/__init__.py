"""Push1st: a self-hosted realtime server. Backends publish over HTTP; clients subscribe over Pusher or raw WebSockets."""

__version__ = "0.1.0"
