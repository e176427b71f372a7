"""The code of the guide to rehearsing runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from worlds.bundles import make_bundle, model_bytes

from kasmina_edge.slots import SlotStore

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/rehearsing.md").read_text(), re.DOTALL)


def test_the_guide_runs_as_it_stands(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "data")
    store.begin_trial(store.install(make_bundle(), engine="litert"))
    store.go_live()
    store.confirm()
    (tmp_path / "digits.tflite").write_bytes(model_bytes("litert"))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(BLOCKS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d\d ms (± \d+ %|band unknown), arena 2880 B, fits: True\nRAM: ", done.stdout)
    assert len(BLOCKS) == 3
