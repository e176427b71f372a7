"""Times of many networks on a machine that others use too: in turns, in short blocks, beside one reference network.

A figure is the median over rounds of a block's median. A round goes through all networks, so that a machine that is
slower for a minute is slower for all of them; and each block is put in proportion to the reference network, which is
measured before and after it, against what is slower for a second.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kasmina_edge.errors import EngineError

Call = Callable[[], object]
Opener = Callable[[bytes], Call]
ROUNDS, LEAST_ROUNDS = 9, 3
BLOCK_NS = 3_000_000
LEAST_CALLS, MOST_CALLS, WARM_CALLS = 5, 300, 3
TOGETHER = 16
"""Networks that are loaded at a time: a small device has no memory for all of them."""


@dataclass(frozen=True)
class Timing:
    """One network's time.

    Attributes:
        p50_us: Median of one inference: input set, invoked, output taken.
        spread: Half the distance between the quartiles of the rounds, as a share of the median.
        raw_us: The same median without the reference's proportion.
    """

    p50_us: float
    spread: float
    raw_us: float


def litert_opener(threads: int = 1) -> Opener:
    """Loads ``.tflite`` files into LiteRT.

    Raises:
        EngineError: LiteRT is not installed.
    """
    import numpy as np

    from kasmina_edge.engines.litert import LitertEngine

    module, _ = LitertEngine.library()

    def open_net(data: bytes) -> Call:
        interpreter: Any = module.Interpreter(model_content=data, num_threads=threads)
        interpreter.allocate_tensors()
        source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
        rng = np.random.default_rng(0)
        shape = tuple(int(n) for n in source["shape"])
        whole = np.issubdtype(source["dtype"], np.integer)
        x = rng.integers(-100, 100, shape).astype(source["dtype"]) if whole else rng.normal(size=shape)
        x, index = np.ascontiguousarray(x, source["dtype"]), source["index"]
        set_tensor, invoke, get_tensor = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

        def call() -> object:
            set_tensor(index, x)
            invoke()
            return get_tensor(sink)

        return call

    return open_net


def time_nets(
    files: Sequence[bytes],
    open_net: Opener,
    *,
    reference: bytes,
    rounds: int = ROUNDS,
    seconds: float = math.inf,
    block_ns: int = BLOCK_NS,
    timer_ns: Callable[[], int] = time.perf_counter_ns,
    told: Callable[[float], None] = lambda share: None,
) -> list[Timing]:
    """Time every file.

    Args:
        files: Networks.
        open_net: Loads one, and gives what runs it once.
        reference: The network that tells how fast the machine is just now; some 50 us are good.
        rounds: Blocks of each, at most.
        seconds: No round is begun that would end later, but `LEAST_ROUNDS` are.
        block_ns: Aimed length of a block.
        timer_ns: Monotonic.
        told: Called with the share that is done, 0 to 1.

    Raises:
        EngineError: A network does not run.
    """
    beside = open_net(reference)
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in files]  # block medians, the reference's beside
    began_ns = timer_ns()
    with _undisturbed():
        for done in range(rounds):
            spent_s = (timer_ns() - began_ns) / 1e9
            if done >= LEAST_ROUNDS and spent_s * (done + 1) / done > seconds:
                break
            for start in range(0, len(files), TOGETHER):
                calls = [_opened(open_net, data, start + i) for i, data in enumerate(files[start : start + TOGETHER])]
                before = _block(beside, block_ns, timer_ns)
                for call, (times, references) in zip(calls, found[start:], strict=False):
                    times.append(_block(call, block_ns, timer_ns))
                    after = _block(beside, block_ns // 4, timer_ns)
                    references.append((before + after) / 2)
                    before = after
                del calls
                gc.collect()
            told(min(1.0, max((done + 1) / rounds, (timer_ns() - began_ns) / 1e9 / seconds)))
    usual = statistics.median([value for _, references in found for value in references]) if found else 0.0
    return [_timing(times, references, usual) for times, references in found]


def _timing(times: Sequence[float], references: Sequence[float], usual: float) -> Timing:
    scaled = sorted(t * usual / r for t, r in zip(times, references, strict=True))
    middle = statistics.median(scaled)
    quarter = len(scaled) // 4
    return Timing(middle, (scaled[-1 - quarter] - scaled[quarter]) / 2 / middle, statistics.median(times))


def _opened(open_net: Opener, data: bytes, number: int) -> Call:
    try:
        call = open_net(data)
        call()
    except (RuntimeError, ValueError) as exc:
        raise EngineError(f"network {number}, {len(data)} bytes, does not run here ({exc})") from exc
    return call


def _block(call: Call, block_ns: int, timer_ns: Callable[[], int]) -> float:
    """Median microseconds of some calls; the first ones, which find cold caches, do not count."""
    began = timer_ns()
    for _ in range(WARM_CALLS):
        call()
    each = max(1, (timer_ns() - began) // WARM_CALLS)
    times = []
    for _ in range(min(MOST_CALLS, max(LEAST_CALLS, block_ns // each))):
        began = timer_ns()
        call()
        times.append(timer_ns() - began)
    return statistics.median(times) / 1000.0


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No collection of garbage in between."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
