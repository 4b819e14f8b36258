"""MQTT clients over TCP and WebSockets.

`connection` owns the socket; `input` reads packets in slices, and `output` ends the connection. `session` applies packets with
`subscribing` and `publishing`. `sending` and `receiving` have the state of messages with QoS 1 and 2. `identity` reads CONNECT.
`lasting` stores a session that outlives its connection, and `resuming` restores it. `overlaps` merges the copies of a message,
`groups` shares filters between clients, `retained` sends retained messages, and `wills` publishes wills.
"""
