"""The verdicts about an accelerator, the reset of its device, and what supervisor and worker share: no process here."""

from __future__ import annotations

import doctest
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds.bundles import make_bundle, make_profile
from worlds.faulty_engine import FaultyWorld

from kasmina_edge.engines.accelerator import known, rules
from kasmina_edge.engines.accelerator.channel import (
    HEAD,
    MAX_MESSAGE,
    RUN,
    TensorMemory,
    WorkerSpec,
    as_stateless,
    memory,
    message,
)
from kasmina_edge.engines.accelerator.device import USBDEVFS_RESET, find_usb, reset_edgetpu
from kasmina_edge.engines.accelerator.known import all_finite, difference
from kasmina_edge.engines.accelerator.rules import (
    Backoff,
    LateWindow,
    SupervisorRules,
    deadline_ms,
    verify_interval,
)

times_ms = st.floats(0.01, 1000.0)


@pytest.mark.parametrize("module", [rules, known])
def test_the_examples_in_the_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


@given(p99=times_ms, twin=times_ms)
def test_deadline_and_twin_fit_into_the_gap(p99: float, twin: float) -> None:
    limits = SupervisorRules()
    deadline = deadline_ms(limits, p99_ms=p99, twin_ms=twin)
    if deadline is None:
        assert p99 + twin > limits.gap_ms - 10
        return
    assert min(p99, limits.deadline_floor_ms) <= deadline <= limits.gap_ms
    if twin <= limits.gap_ms - limits.deadline_floor_ms - 10:
        assert deadline + twin <= limits.gap_ms


@given(accelerator=times_ms, twin=times_ms)
def test_comparisons_cost_no_more_than_their_share(accelerator: float, twin: float) -> None:
    limits = SupervisorRules()
    assert verify_interval(SupervisorRules(verify_every=7), accelerator_ms=accelerator, twin_ms=twin) == 7
    every = verify_interval(limits, accelerator_ms=accelerator, twin_ms=twin)
    extra = max(twin - accelerator, 0.0)
    if twin > limits.gap_ms:
        assert every == 0
        return
    assert every >= 1 and extra / every <= limits.check_share * accelerator * (1 + 1e-9)
    assert (every == 1) == (extra <= limits.check_share * accelerator)


@given(seed=st.integers(0, 2**32), failures=st.integers(1, 80))
def test_waits_grow_to_their_bound_and_vary(seed: int, failures: int) -> None:
    limits = SupervisorRules()
    backoff = Backoff(limits, random.Random(seed))
    waits = [backoff.wait_s() for _ in range(failures)]
    for n, wait in enumerate(waits):
        plain = min(limits.backoff_first_s * 2.0**n, limits.backoff_max_s)
        assert 0.75 * plain <= wait <= min(1.25 * plain, limits.backoff_max_s)
    assert backoff.wait_s(in_service_s=limits.steady_s / 2) > limits.backoff_first_s * 1.25 or failures < 2
    assert backoff.wait_s(in_service_s=limits.steady_s) <= limits.backoff_first_s * 1.25


def test_two_devices_do_not_try_in_step() -> None:
    first, second = (Backoff(SupervisorRules(), random.Random(seed)) for seed in (1, 2))
    assert all(first.wait_s() != second.wait_s() for _ in range(6))


def test_late_answers_far_apart_are_forgiven() -> None:
    window = LateWindow(limit=3, window=10)
    assert not any(window.late(call) for call in range(0, 1000, 6))
    assert [window.late(call) for call in (2000, 2001, 2002)] == [False, False, True]


def usb(folder: Path, *ids: str) -> tuple[Path, Path]:
    sysfs, nodes = folder / "sys", folder / "nodes"
    (nodes / "002").mkdir(parents=True)
    for number, pair in enumerate(ids, 4):
        entry = sysfs / f"2-{number}"
        entry.mkdir(parents=True)
        (nodes / f"002/{number:03d}").touch()
        for name, text in (("idVendor", pair[:4]), ("idProduct", pair[5:]), ("busnum", "2"), ("devnum", str(number))):
            (entry / name).write_text(text + "\n")
    (sysfs / "usb1").mkdir(parents=True, exist_ok=True)
    return sysfs, nodes


@pytest.mark.parametrize("ids", ["1a6e:089a", "18d1:9302"])
def test_an_edge_tpu_is_reset_before_and_after_its_first_use(tmp_path: Path, ids: str) -> None:
    sysfs, nodes = usb(tmp_path, "046d:c31c", ids)
    done: list[tuple[str, int]] = []

    def ioctl(fd: int, request: int) -> object:
        done.append((os.readlink(f"/proc/self/fd/{fd}"), request))
        return 0

    assert reset_edgetpu(sysfs=sysfs, nodes=nodes, ioctl=ioctl) == f"USB {ids} was reset"
    assert done == [(str(nodes / "002/005"), USBDEVFS_RESET)]
    assert USBDEVFS_RESET == 0x5514


def test_what_cannot_be_reset_is_said(tmp_path: Path) -> None:
    def never(fd: int, request: int) -> object:
        raise AssertionError("two devices: nobody knows which one failed")

    def vanished(fd: int, request: int) -> object:
        raise OSError(19, "No such device")

    sysfs, nodes = usb(tmp_path / "two", "18d1:9302", "1a6e:089a")
    assert "2 Edge TPUs on USB, none was reset" in reset_edgetpu(sysfs=sysfs, nodes=nodes, ioctl=never)
    sysfs, nodes = usb(tmp_path / "one", "18d1:9302")
    assert reset_edgetpu(sysfs=sysfs, nodes=nodes, ioctl=vanished).endswith("002/004: No such device)")
    (nodes / "002/004").unlink()
    assert reset_edgetpu(sysfs=sysfs, nodes=nodes, ioctl=never).endswith("002/004: No such file or directory)")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert reset_edgetpu(sysfs=empty, devices=empty) == "no Edge TPU on USB or PCIe"
    assert find_usb(empty / "nothing") == []
    (empty / "apex_0").touch()
    assert reset_edgetpu(sysfs=empty, devices=empty) == "PCIe apex_0: loaded again, no reset"


def test_the_tensors_share_no_byte_and_cannot_be_shrunk(tmp_path: Path) -> None:
    model = as_stateless(FaultyWorld(tmp_path, stateful=True).bundle.manifest.models[1])
    assert model.states == () and len(model.app_inputs) == len(model.inputs) == 2
    fd = memory("kasmina-test", TensorMemory.size_bytes(model))
    try:
        ours, theirs = TensorMemory(fd, model), TensorMemory(fd, model)
        views = [*ours.inputs, *ours.outputs]
        for n, view in enumerate(views, 1):
            view[...] = n
        for n, (view, other) in enumerate(zip(views, [*theirs.inputs, *theirs.outputs], strict=True), 1):
            assert (view == n).all() and (other == n).all() and view.ctypes.data % 64 == 0
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_an_order_comes_through_as_it_was() -> None:
    bundle = make_bundle()
    model = bundle.model_for("litert")
    spec = WorkerSpec("package.module:Engine", model, bundle.read(model.file), make_profile(threads=3))
    assert WorkerSpec.read(spec.to_memory()) == spec


@given(st.text(max_size=2000))
def test_a_message_never_outgrows_its_bound(text: str) -> None:
    sent = message(RUN, 2**40, text)
    assert len(sent) <= MAX_MESSAGE and HEAD.unpack_from(sent) == (RUN, 2**40)


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_finite_means_every_value(values: list[float]) -> None:
    assert all_finite([np.array(values, np.float32)]) == all(math.isfinite(v) for v in values)


def test_a_difference_that_is_no_number_is_the_largest() -> None:
    a, nan = np.array([1.0, 2.0], np.float32), np.array([1.0, np.nan], np.float32)
    assert difference([a, nan], [a, a]) == math.inf and difference([nan, a], [a, a + 5]) == math.inf
    low, high = np.array([-128], np.int8), np.array([127], np.int8)
    assert difference([low], [high]) == 255.0 and difference([], []) == 0.0
