"""The parts of the server that use no sockets: hub, fan-out, node and sessions."""
