"""MQTT 3.1, 3.1.1 and 5.0: packets and their bytes, topics and filters, payloads. Everything in this folder only computes."""
