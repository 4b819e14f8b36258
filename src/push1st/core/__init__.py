"""The server without its sockets: hub, fan-out, node and sessions."""
