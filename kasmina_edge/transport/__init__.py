"""Messages between device and controller: one interface, MQTT 5 behind it, and an in-memory twin for tests."""

from kasmina_edge.transport.transport import Acknowledgement, Message, Transport, Will

__all__ = ["Acknowledgement", "Message", "Transport", "Will"]
