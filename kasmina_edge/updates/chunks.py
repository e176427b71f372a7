"""Reading a long file by chunks, as a value: which offsets to ask for now, what to do with an answer. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator

from kasmina_edge.contracts.transfer import MAX_CHUNK_BYTES, ChunkResponse
from kasmina_edge.errors import BundleError, LinkError

WINDOW = 8


class ChunkWindow:
    """At most ``window`` chunks asked for and not yet read; the first one alone, because it tells the length.

    Args:
        limit_bytes: Longest file that is read.
        window: Chunks in flight or waiting to be read in order.
        chunk_bytes: Length of each.
        retry_s: An answer that took longer is asked for again.
    """

    def __init__(
        self, *, limit_bytes: int, window: int = WINDOW, chunk_bytes: int = MAX_CHUNK_BYTES, retry_s: float = 2.0
    ) -> None:
        self.limit_bytes = limit_bytes
        self.chunk_bytes = chunk_bytes
        self.total_bytes: int | None = None
        self._window = window
        self._retry_s = retry_s
        self._next = 0  # first offset that was not read yet
        self._asked: dict[int, float] = {}
        self._arrived: dict[int, bytes] = {}

    @property
    def done(self) -> bool:
        """Whether every byte was read."""
        return self.total_bytes is not None and self._next >= self.total_bytes

    def due(self, now_s: float) -> list[int]:
        """Offsets to ask for now, lowest first; they count as asked from now on."""
        if self.total_bytes is None:
            wanted = [0]
        else:
            end = min(self._next + self._window * self.chunk_bytes, self.total_bytes)
            wanted = list(range(self._next, end, self.chunk_bytes))
        due = [
            offset
            for offset in wanted
            if offset not in self._arrived and now_s - self._asked.get(offset, -1e12) >= self._retry_s
        ]
        self._asked.update(dict.fromkeys(due, now_s))
        return due

    def forget_asked(self) -> None:
        """The link was lost: answers on their way may never come, so that everything missing is due again."""
        self._asked.clear()

    def take(self, response: ChunkResponse, *, where: str) -> bool:
        """Take one answer; False when it brought nothing new.

        Raises:
            BundleError: The file is longer than ``limit_bytes``.
            LinkError: The answer contradicts an earlier one, or is shorter than was asked for.
        """
        if response.status == "busy":
            return False
        if response.total_bytes > self.limit_bytes:
            raise BundleError(f"{where}: {response.total_bytes} bytes, at most {self.limit_bytes} are read")
        if self.total_bytes is None:
            self.total_bytes = response.total_bytes
        offset = response.offset
        if offset not in self._asked or offset < self._next or offset in self._arrived:
            return False
        expected = min(self.chunk_bytes, self.total_bytes - offset)
        if response.total_bytes != self.total_bytes or len(response.data) != expected:
            raise LinkError(
                f"{where}: chunk at {offset} has {len(response.data)} bytes of {response.total_bytes}, "
                f"expected {expected} of {self.total_bytes}"
            )
        self._arrived[offset] = response.data
        del self._asked[offset]
        return True

    def ready(self) -> Iterator[bytes]:
        """Chunks that can be read now, in order."""
        while self._next in self._arrived:
            data = self._arrived.pop(self._next)
            self._next += self.chunk_bytes
            yield data
