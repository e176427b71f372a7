"""The guide names every field with its default, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from kasmina_trainer.quantization.config import QuantizeConfig

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/quantization.md"


def test_every_field_stands_in_the_table_with_its_default() -> None:
    table = {}
    for line in GUIDE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            values = cells[2].replace("`", "")
            names = re.findall(r"`(\w+)`", cells[1])
            table.update(zip(names, values.split(", ") if len(names) > 1 else [values], strict=True))
    fields = {name: field.default for name, field in QuantizeConfig.model_fields.items()}
    assert table == {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()
    }


def test_the_example_runs() -> None:
    example = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    names: dict[str, object] = {}
    for code in example:
        exec(code, names)
    assert names["config"] == QuantizeConfig(method="qat", headroom=0)
