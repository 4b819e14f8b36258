"""Transports open, read, write and end connections on sockets. Sessions and codecs do not use sockets."""
