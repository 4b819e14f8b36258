"""Push1st: a self-hosted realtime server. Backends publish over HTTP; clients listen over Pusher or raw WebSocket."""

__version__ = "0.1.0"
