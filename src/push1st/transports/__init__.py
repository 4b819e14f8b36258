"""Transports: sockets, and the connections on them. A transport owns a connection's life; sessions and codecs know nothing of
it.
"""
