"""Answers devices' requests for chunks of files that are too long to be retained."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping

from kasmina_edge.contracts.transfer import MAX_REQUEST_BYTES, ChunkRequest, ChunkResponse
from kasmina_edge.errors import InputError, KasminaError

log = logging.getLogger(__name__)

BURST_BYTES = 64 * 1024 * 1024
BYTES_PER_S = 8 * 1024 * 1024
CACHE_BYTES = 64 * 1024 * 1024


class Allowance:
    """Bytes that one device may still ask for: a bucket of ``burst_bytes`` that fills by ``bytes_per_s``.

    >>> allowance = Allowance(burst_bytes=10, bytes_per_s=1, now_s=0.0)
    >>> allowance.take(8, now_s=0.0), allowance.take(8, now_s=1.0), allowance.take(8, now_s=6.0)
    (True, False, True)
    """

    def __init__(self, *, burst_bytes: int, bytes_per_s: float, now_s: float) -> None:
        self._burst = burst_bytes
        self._rate = bytes_per_s
        self._left = float(burst_bytes)
        self._at_s = now_s

    def take(self, size_bytes: int, *, now_s: float) -> bool:
        """Spend ``size_bytes`` if they are there."""
        self._left = min(self._burst, self._left + max(0.0, now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True


class ChunkServer:
    """Turns a request's payload into a response's, within each device's allowance.

    Args:
        read_target: A target's bytes by hash-prefixed path.
        clock: Monotonic seconds.
        burst_bytes: What a device may ask for at once.
        bytes_per_s: What it may ask for in the long run.
        cache_bytes: Files kept in memory between the chunks of a transfer.
    """

    def __init__(
        self,
        read_target: Callable[[str], bytes],
        *,
        clock: Callable[[], float],
        burst_bytes: int = BURST_BYTES,
        bytes_per_s: float = BYTES_PER_S,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._read_target = read_target
        self._clock = clock
        self._burst = burst_bytes
        self._rate = bytes_per_s
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._allowances: dict[str, Allowance] = {}
        self._metadata: Mapping[str, bytes] = {}
        self._targets: frozenset[str] = frozenset()

    def offer(self, metadata: Mapping[str, bytes], targets: frozenset[str]) -> None:
        """Serve these files from now on, and nothing else."""
        self._metadata, self._targets = dict(metadata), targets
        for path in [p for p in self._cache if p not in targets]:
            self._cache.pop(path, None)

    def answer(self, device: str, payload: bytes, *, where: str) -> ChunkResponse:
        """One chunk, or why not.

        Raises:
            InputError: The request is malformed.
        """
        if len(payload) > MAX_REQUEST_BYTES:
            raise InputError(f"{where}: {len(payload)} bytes, a request has at most {MAX_REQUEST_BYTES}")
        request = ChunkRequest.from_bytes(payload, where=where)
        now_s = self._clock()
        allowance = self._allowances.get(device)
        if allowance is None:
            allowance = Allowance(burst_bytes=self._burst, bytes_per_s=self._rate, now_s=now_s)
            self._allowances[device] = allowance
        if not allowance.take(request.length, now_s=now_s):
            return ChunkResponse("busy", request.offset, 0)
        data = self._read(request)
        if data is None:
            return ChunkResponse("absent", request.offset, 0)
        chunk = data[request.offset : request.offset + request.length]
        return ChunkResponse("ok", min(request.offset, len(data)), len(data), chunk)

    def _read(self, request: ChunkRequest) -> bytes | None:
        if request.place == "metadata":
            return self._metadata.get(request.path)
        if request.path not in self._targets:
            return None
        data = self._cache.pop(request.path, None)
        if data is None:
            try:
                data = self._read_target(request.path)
            except KasminaError as exc:
                log.error("a signed target cannot be read: %s", exc.message, extra={"target": request.path})
                return None
        self._cache[request.path] = data
        while sum(map(len, self._cache.values())) > self._cache_bytes and len(self._cache) > 1:
            self._cache.popitem(last=False)
        return data
