"""Converters are kept quiet; progress bars and errors are not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from kasmina_trainer.export.silence import quiet


def test_native_noise_is_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        os.write(1, b"native\n")
        os.write(2, b"native\n")
        warnings.warn("advice", UserWarning, stacklevel=1)
        logging.getLogger("converter").warning("advice")
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("", "after\n")


def test_it_nests_and_restores(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    with quiet():
        with quiet():
            os.write(2, b"inner\n")
        os.write(2, b"outer\n")
    assert capfd.readouterr().err == ""
    assert logging.root.manager.disable == before
    assert "LITERT_TORCH_SHOW_PROGRESS" not in os.environ


def test_an_error_carries_what_was_printed() -> None:
    with pytest.raises(ValueError, match="broken") as caught, quiet():
        os.write(2, b"the reason\n")
        raise ValueError("broken")
    assert "the reason" in caught.value.__notes__[0]


def test_an_error_without_noise_has_no_note() -> None:
    with pytest.raises(ValueError, match="broken") as caught, quiet():
        raise ValueError("broken")
    assert not hasattr(caught.value, "__notes__")


def test_python_streams_still_arrive() -> None:
    code = (
        "import os, sys\n"
        "from kasmina_trainer.export.silence import quiet\n"
        "with quiet():\n"
        "    print('bar', file=sys.stderr); print('out'); os.write(2, b'native'); os.write(1, b'native')\n"
        "print('end', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("out\n", "bar\nend\n")


def test_the_collector_comes_back() -> None:
    import gc

    from kasmina_trainer.export.collector import without_collector

    with pytest.raises(KeyError), without_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
