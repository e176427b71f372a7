"""A profile as TOML that people can read: strings in quotes, numbers as they are, tables last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kasmina_edge.contracts.profile import HardwareProfile


def profile_toml(profile: HardwareProfile, *, comment: str = "") -> str:
    """The text of a ``.toml`` file that reads back as the same profile; what has its default is left out,
    except for threads and kind.

    Args:
        profile: Any.
        comment: First line, without its ``#``.
    """
    told = {*profile.model_dump(mode="json", exclude_defaults=True), "threads", "kind"}
    fields = {key: value for key, value in profile.model_dump(mode="json").items() if key in told}
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    tables = {key: value for key, value in fields.items() if isinstance(value, Mapping) and value}
    lists = {key: value for key, value in fields.items() if _is_list_of_tables(value)}
    for key, value in fields.items():
        if key not in tables and key not in lists and value is not None:
            lines.append(f"{key} = {_value(value)}")
    for key, value in tables.items():
        lines += ["", f"[{key}]", *(f"{_key(name)} = {_value(each)}" for name, each in value.items())]
    for key, value in lists.items():
        for each in value:
            lines += ["", f"[[{key}]]", *(f"{k} = {_value(v)}" for k, v in each.items() if v is not None)]
    return "\n".join([*lines, ""])


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    return name if bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
