"""Edges: bytes from and to sockets. A transport owns a connection's life; sessions and codecs know nothing of it."""
