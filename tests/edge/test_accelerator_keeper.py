"""What goes wrong around an accelerator's keeper, and not in the accelerator: it stays at its post, and says so."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from worlds.faulty_engine import FaultyWorld, alive, eventually

from kasmina_edge.engines.accelerator.supervisor import SupervisedEngine


def worker(engine: SupervisedEngine) -> int:
    link = engine._keeper.link
    assert link is not None
    return link.pid


def test_a_line_that_somebody_else_closed_does_not_end_the_keeper(tmp_path: Path) -> None:
    world = FaultyWorld(tmp_path)
    with world.open() as engine:
        world.in_service(engine)
        link = engine._keeper.link
        assert link is not None
        link._line.close()
        os.close(link._complaints)
        seen = world.drive(engine, until=lambda: bool(world.events))
        assert seen.wrong == 0 and world.kinds[0] == "crash"
        assert eventually(lambda: (world.drive(engine, 1), engine.counters().in_service)[1])


def test_a_fault_of_the_keepers_own_does_not_end_it(tmp_path: Path) -> None:
    world = FaultyWorld(tmp_path)
    with world.open() as engine:
        world.in_service(engine)
        keeper, link = engine._keeper, engine._keeper.link
        assert link is not None

        def fails(*_: object) -> None:
            keeper._watch = type(keeper)._watch.__get__(keeper)  # type: ignore[method-assign]
            raise ZeroDivisionError("1/0")

        keeper._watch = fails  # type: ignore[method-assign]
        keeper.hurry()
        assert eventually(lambda: "keeper failed (ZeroDivisionError: 1/0)" in engine.accelerator or link.closed)
        assert eventually(lambda: (world.drive(engine, 1), engine.counters().in_service)[1])
        assert not alive(link.pid) and worker(engine) != link.pid


def test_the_childs_path_holds_only_what_a_child_can_use(tmp_path: Path) -> None:
    from kasmina_edge.engines.accelerator.link import import_path

    (tmp_path / "a:b").mkdir()
    before, here = list(sys.path), Path.cwd()
    gone = tmp_path / "gone"
    gone.mkdir()
    try:
        os.chdir(gone)
        sys.path[:0] = ["", tmp_path, str(tmp_path / "a:b"), str(tmp_path / "missing"), b"/"]  # type: ignore[list-item]
        assert import_path().split(os.pathsep)[:3] == [str(gone), str(tmp_path), "/"]
        gone.rmdir()
        assert import_path().split(os.pathsep)[:2] == [str(tmp_path), "/"]
    finally:
        sys.path[:] = before
        os.chdir(here)


def test_a_program_without_its_interpreters_path_is_told_so(tmp_path: Path) -> None:
    world, python = FaultyWorld(tmp_path), sys.executable
    try:
        sys.executable = ""
        with world.open() as engine:
            assert world.kinds == ["gone"] and "sys.executable is not set" in world.events[0].detail
            assert "sys.executable is not set" in engine.accelerator
            sys.executable = python
            assert eventually(lambda: (world.drive(engine, 1), engine.counters().in_service)[1])
    finally:
        sys.executable = python


def test_an_unexpected_fault_after_a_crash_is_told_once(tmp_path: Path) -> None:
    world = FaultyWorld(tmp_path)
    with world.open() as engine:
        world.in_service(engine)
        spec, tries = engine._keeper._spec, []

        class Broken:
            model = spec.model

            def to_memory(self) -> int:
                tries.append(1)
                raise ZeroDivisionError("1/0")

        engine._keeper._spec = Broken()  # type: ignore[assignment]
        os.kill(worker(engine), signal.SIGKILL)
        assert eventually(lambda: (world.drive(engine, 1), len(tries) >= 3)[1])
        assert world.kinds == ["crash", "crash"] and "ZeroDivisionError: 1/0" in world.events[1].detail
        engine._keeper._spec = spec
        assert eventually(lambda: (world.drive(engine, 1), engine.counters().in_service)[1])
