"""The promises themselves, one function each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import FileEntry
from kasmina_edge.engines.conformance.subject import (
    BrokenPromiseError,
    Frame,
    NotAskedError,
    Promise,
    Subject,
    demand,
    equal,
    same,
)
from kasmina_edge.engines.engine import Engine
from kasmina_edge.engines.selftest import self_test, vector_key
from kasmina_edge.errors import BundleError, EngineError, InputError, KasminaError

Array = npt.NDArray[Any]
_THREADS, _CALLS = 4, 40


def says_before_loading_that_it_can(s: Subject) -> None:
    """`check` is a value: ok, a text for people, and the library's version."""
    check = s.kind.check(s.profile, s.model)
    demand(check.ok, f"check says no: {check.reason}")
    demand(bool(check.runs_on), "check does not say what it runs on")
    demand(any(c.isdigit() for c in check.reason), f"no version in {check.reason!r}")


def says_what_it_runs_on(s: Subject) -> None:
    """After loading, ``runs_on`` is known."""
    with s.open() as engine:
        demand(bool(engine.runs_on), "runs_on is empty")
        demand(engine.runs_on == s.kind.check(s.profile, s.model).runs_on, f"check said otherwise: {engine.runs_on}")


def passes_the_self_test(s: Subject) -> None:
    """Every vector within the manifest's tolerance, and times above zero."""
    with s.open() as engine:
        result = self_test(engine, s.bundle, timed_runs=20)
    demand(result.ok, f"{result.passed} of {result.samples} vectors, worst {result.worst:g}")
    demand(0 < result.p50_us <= result.p99_us, f"p50 {result.p50_us}, p99 {result.p99_us}")


def fails_a_self_test_with_other_answers(s: Subject) -> None:
    """The self-test can fail: known answers that are moved beyond the tolerance do not pass."""
    arrays = dict(s.bundle.arrays(s.model.selftest.file))
    for i, tensor in enumerate(s.model.app_outputs):
        key = vector_key("output", i, tensor.name)
        arrays[key] = _moved(arrays[key], s.model.selftest.tolerance)
    data = pack_arrays(arrays)
    entry = FileEntry.of(s.model.selftest.file.path, data)
    changed = s.model.model_copy(update={"selftest": s.model.selftest.model_copy(update={"file": entry})})
    with s.open(changed) as engine:
        result = self_test(engine, Bundle(s.bundle.manifest, {entry.path: data}, {}), timed_runs=1)
    demand(not result.ok, "moved answers pass the self-test")


def gives_what_the_manifest_names(s: Subject) -> None:
    """Outputs have the manifest's names, order, shapes and dtypes; constants and states are not among them."""
    with s.open() as engine:
        answer = engine.run(s.frames[0])
    wanted = [(t.name, tuple(t.shape), np.dtype(t.dtype)) for t in s.model.app_outputs]
    got = [(name, array.shape, array.dtype) for name, array in answer.items()]
    demand(got == wanted, f"{got} instead of {wanted}")


def answers_alike_after_a_reset(s: Subject) -> None:
    """The same frames from the beginning give the same bits, also in a second instance."""
    with s.open() as engine, s.open() as other:
        first = s.sequence(engine)
        same(first, s.sequence(engine), "after a reset")
        same(first, s.sequence(other), "in a second instance")


def carries_state(s: Subject) -> None:
    """A model with state answers from its past, and a reset takes that past away."""
    if not s.model.stateful:
        raise NotAskedError("the model has no state")
    with s.open() as engine:
        first = s.sequence(engine)
        again = [engine.run(frame) for frame in s.frames]
        if equal(first, again):
            raise NotAskedError("the self-test's answers do not depend on what came before")
        engine.reset()
        same(first[:1], [engine.run(s.frames[0])], "after a reset")


def hot_path_answers_alike(s: Subject) -> None:
    """`hot_path` gives what `run` gives, in the manifest's order."""
    with s.open() as engine:
        wanted = s.sequence(engine)
        engine.reset()
        call = engine.hot_path()
        for i, frame in enumerate(s.frames):
            got = call([frame[t.name] for t in s.model.app_inputs])
            demand(len(got) == len(wanted[i]), f"{len(got)} outputs instead of {len(wanted[i])}")
            for (name, array), mine in zip(wanted[i].items(), got, strict=True):
                demand(np.array_equal(array, mine), f"output {name} of frame {i} differs")


def input_buffers_are_the_inputs(s: Subject) -> None:
    """Where there are input buffers, a frame that is written there and passed is the frame that is answered."""
    with s.open() as engine:
        buffers = engine.input_buffers()
        if buffers is None:
            raise NotAskedError("the engine shows no buffers")
        wanted = s.sequence(engine)
        engine.reset()
        call = engine.hot_path()
        for i, frame in enumerate(s.frames):
            for buffer, tensor in zip(buffers, s.model.app_inputs, strict=True):
                demand((buffer.shape, buffer.dtype) == (tuple(tensor.shape), np.dtype(tensor.dtype)), "wrong buffer")
                buffer[...] = frame[tensor.name]
            for array, mine in zip(wanted[i].values(), call(list(buffers)), strict=True):
                demand(np.array_equal(array, mine), f"frame {i} differs when it is written in place")


def outputs_belong_to_the_caller(s: Subject) -> None:
    """An answer does not change when the next frame is answered, and may be written to."""
    with s.open() as engine:
        for call in (engine.run, _by_name(engine)):
            engine.reset()
            first = call(s.frames[0])
            kept = {name: array.copy() for name, array in first.items()}
            for frame in s.frames[1:4]:
                call(frame)
            same([kept], [first], "after the next call")
            for array in first.values():
                array.fill(0)
            engine.reset()
            same([kept], [call(s.frames[0])], "after the answer was written to")


def inputs_are_not_kept(s: Subject) -> None:
    """Writing to an input after the call changes nothing that comes later."""
    with s.open() as engine:
        wanted = s.sequence(engine)
        engine.reset()
        for i, frame in enumerate(s.frames):
            mine = {name: array.copy() for name, array in frame.items()}
            got = engine.run(mine)
            for array in mine.values():
                array.fill(0)
            same([wanted[i]], [got], f"at frame {i}, with inputs that are overwritten")


def wrong_inputs_are_input_errors(s: Subject) -> None:
    """A missing, further, misshapen or mistyped input is an `InputError` that names the file."""
    frame = s.frames[0]
    name = next(iter(frame))
    odd = np.complex64
    wrongs: list[Frame] = [
        {},
        {**frame, "no-such-input": frame[name]},
        {("no-such-input" if key == name else key): value for key, value in frame.items()},
        {**frame, name: frame[name][None]},
        {**frame, name: frame[name].astype(odd)},
    ]
    with s.open() as engine:
        for wrong in wrongs:
            try:
                engine.run(wrong)
            except InputError as exc:
                demand(s.model.file.path in exc.message, f"the message does not name the file: {exc.message}")
            else:
                raise BrokenPromiseError(f"{s.kind.name}: took {sorted(wrong)}")


def what_is_no_model_is_a_bundle_error(s: Subject) -> None:
    """Bytes that are no model are a `BundleError` that names the file, or an `EngineError`; never another one."""
    for data in (b"", b"not a model", b"\0" * 400, s.data[: len(s.data) // 2]):
        try:
            s.open(data=data).close()
        except KasminaError as exc:
            demand(isinstance(exc, BundleError | EngineError), f"{type(exc).__name__} for {data[:12]!r}")
            demand(s.model.file.path in exc.message, f"the message does not name the file: {exc.message}")
        else:
            raise BrokenPromiseError(f"{s.kind.name}: loaded {len(data)} bytes that are no model")


def a_manifest_that_differs_is_refused(s: Subject) -> None:
    """Shapes, dtypes and the number of tensors are held against the file."""
    for side in ("inputs", "outputs"):
        tensors = getattr(s.model, side)
        first = tensors[0]
        other = "int16" if first.dtype != "int16" else "float32"
        changes = [
            ((first.model_copy(update={"dtype": other, "scale": None, "zero_point": None}), *tensors[1:]), "dtype"),
            ((first.model_copy(update={"shape": (*first.shape, 3, 7)}), *tensors[1:]), "shape"),
            ((*tensors, first.model_copy(update={"name": "one-more"})), "number of tensors"),
        ]
        for changed, what in changes:
            model = s.model.model_copy(update={side: changed})
            if what == "shape":  # a state keeps its pair's shape, or the manifest itself would be at odds
                model = model.model_copy(update={"states": ()})
            try:
                s.open(model).close()
            except BundleError:
                continue
            raise BrokenPromiseError(f"{s.kind.name}: a manifest with another {what} of the {side} is accepted")


def a_closed_engine_says_so(s: Subject) -> None:
    """Closing twice is harmless; running, resetting and the hot path then fail, and `failure` says why."""
    engine = s.open()
    call = engine.hot_path()
    engine.run(s.frames[0])
    engine.close()
    engine.close()
    for use in (lambda: engine.run(s.frames[0]), engine.reset):
        try:
            use()
        except EngineError as exc:
            demand("closed" in exc.message, exc.message)
        else:
            raise BrokenPromiseError(f"{s.kind.name}: works after it was closed")
    try:
        call([s.frames[0][t.name] for t in s.model.app_inputs])
    except Exception as exc:
        demand("closed" in engine.failure(exc).message, "failure() does not say that it is closed")
    else:
        raise BrokenPromiseError(f"{s.kind.name}: its hot path works after it was closed")


def threads_get_their_own_answers(s: Subject) -> None:
    """`run` is safe for several threads."""
    if s.model.stateful:
        raise NotAskedError("the model has state")
    with s.open() as engine:
        frames = s.frames[:_THREADS]
        wanted = [engine.run(frame) for frame in frames]
        wrong: list[str] = []

        def work(i: int) -> None:
            for _ in range(_CALLS):
                if not equal([wanted[i]], [engine.run(frames[i])]):
                    wrong.append(f"thread {i}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(frames))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    demand(not wrong, f"other answers in {sorted(set(wrong))}")


def any_number_of_threads_agrees(s: Subject) -> None:
    """The profile's threads change the time, not the answers beyond the tolerance."""
    for threads in (1, 2, 4):
        with s.open(threads=threads) as engine:
            result = self_test(engine, s.bundle, timed_runs=1)
        demand(result.ok, f"{threads} threads: {result.passed} of {result.samples}, worst {result.worst:g}")


def a_batch_is_its_frames(s: Subject) -> None:
    """Where `batch_of` gives an engine, it answers each frame as it is answered alone; models with state have none."""
    with s.open() as engine:
        batch = engine.batch_of(3)
        if s.model.stateful:
            demand(batch is None, "a model with state gives a batch")
        if batch is None:
            raise NotAskedError("the model or the engine has no batches")
        with batch:
            frames = [s.frames[i % len(s.frames)] for i in range(3)]
            together = batch.run({name: np.concatenate([f[name] for f in frames]) for name in frames[0]})
            for i, frame in enumerate(frames):
                for name, alone in engine.run(frame).items():
                    gap = np.abs(together[name][i : i + 1].astype(np.float64) - alone.astype(np.float64)).max()
                    demand(gap <= s.model.selftest.tolerance, f"frame {i} differs by {gap:g}")


PROMISES: tuple[Promise, ...] = (
    says_before_loading_that_it_can,
    says_what_it_runs_on,
    passes_the_self_test,
    fails_a_self_test_with_other_answers,
    gives_what_the_manifest_names,
    answers_alike_after_a_reset,
    carries_state,
    hot_path_answers_alike,
    input_buffers_are_the_inputs,
    outputs_belong_to_the_caller,
    inputs_are_not_kept,
    wrong_inputs_are_input_errors,
    what_is_no_model_is_a_bundle_error,
    a_manifest_that_differs_is_refused,
    a_closed_engine_says_so,
    threads_get_their_own_answers,
    any_number_of_threads_agrees,
    a_batch_is_its_frames,
)
"""All of them, in the order in which they make sense."""


def _by_name(engine: Engine) -> Callable[[Frame], Frame]:
    call, model = engine.hot_path(), engine.model

    def run(frame: Frame) -> Frame:
        answers = call([frame[t.name] for t in model.app_inputs])
        return {t.name: array for t, array in zip(model.app_outputs, answers, strict=True)}

    return run


def _moved(array: Array, tolerance: float) -> Array:
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind == "f":
        return np.asarray(array + array.dtype.type(4 * tolerance + 1.0))
    info, step = np.iinfo(array.dtype), int(tolerance) + 2
    wide = array.astype(np.int64)
    return np.where(wide + step > info.max, wide - step, wide + step).astype(array.dtype)
