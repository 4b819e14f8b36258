"""Transports: sockets, and the connections on them. A transport opens and ends connections; sessions and codecs do not use
sockets.
"""
