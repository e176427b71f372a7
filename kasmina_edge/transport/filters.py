"""Topics and topic filters of MQTT 5: what may be published to, what may be subscribed to, which filter takes what."""

from __future__ import annotations

from kasmina_edge.errors import InputError

MAX_TOPIC_BYTES = 1024


def check_topic(topic: str) -> None:
    """Refuse what cannot be published to.

    Raises:
        InputError: Empty, longer than 1024 bytes, or holding a wildcard or a control character.
    """
    if "+" in topic or "#" in topic:
        raise InputError(f"topic {topic!r}: holds a wildcard")
    _check_text(topic)


def check_filter(topic_filter: str) -> None:
    """Refuse what cannot be subscribed to (MQTT 5, section 4.7.1).

    Raises:
        InputError: Empty, too long, or a wildcard stands in the wrong place.
    """
    _check_text(topic_filter)
    parts = topic_filter.split("/")
    for i, part in enumerate(parts):
        if ("+" in part or "#" in part) and len(part) > 1:
            raise InputError(f"topic filter {topic_filter!r}: a wildcard must stand alone between slashes")
        if part == "#" and i != len(parts) - 1:
            raise InputError(f"topic filter {topic_filter!r}: # must come last")


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter takes a topic (MQTT 5, section 4.7).

    >>> matches("a/+/c/#", "a/b/c"), matches("a/#", "b/a"), matches("#", "$SYS/x")
    (True, False, False)
    """
    wanted, parts = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for i, part in enumerate(wanted):
        if part == "#":
            return True
        if i >= len(parts) or part not in ("+", parts[i]):
            return False
    return len(wanted) == len(parts)


def _check_text(text: str) -> None:
    if not text:
        raise InputError("a topic may not be empty")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InputError(f"topic {text!r}: not valid UTF-8") from exc
    if size_bytes > MAX_TOPIC_BYTES:
        raise InputError(f"topic {text[:40]!r}...: {size_bytes} bytes, at most {MAX_TOPIC_BYTES} are sent")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise InputError(f"topic {text!r}: holds a control character")
