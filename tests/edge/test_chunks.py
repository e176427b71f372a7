"""Long files by chunks: the window's rules, the messages, and the server's limits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.contracts.transfer import MAX_CHUNK_BYTES, ChunkRequest, ChunkResponse
from kasmina_edge.errors import BundleError, InputError, LinkError, StorageError
from kasmina_edge.fleet.chunk_server import Allowance, ChunkServer
from kasmina_edge.updates.chunks import ChunkWindow


def piece(data: bytes, offset: int, size: int) -> ChunkResponse:
    return ChunkResponse("ok", offset, len(data), data[offset : offset + size])


@given(
    size=st.integers(0, 200),
    chunk=st.integers(1, 40),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    loss=st.booleans(),
)
def test_whatever_order_loss_and_repetition_the_file_arrives(
    size: int, chunk: int, width: int, seed: int, loss: bool
) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(size)
    window = ChunkWindow(limit_bytes=size, window=width, chunk_bytes=chunk, retry_s=2.0)
    read, flying, now_s = b"", list[int](), 0.0
    for _ in range(5000):
        if window.done:
            break
        asked = window.due(now_s)
        assert len(asked) <= width and all(offset < len(read) + width * chunk for offset in asked)
        flying += asked
        if not flying:
            now_s += 2.0
            continue
        offset = flying.pop(rng.randrange(len(flying)))
        if loss and rng.random() < 0.3:
            if rng.random() < 0.2:
                window.forget_asked()
            continue
        for _ in range(rng.choice([1, 1, 2])):
            window.take(piece(data, offset, chunk), where="f")
        read += b"".join(window.ready())
    assert window.done and read == data


def test_the_first_chunk_is_asked_for_alone_and_late_ones_again() -> None:
    window = ChunkWindow(limit_bytes=100, window=3, chunk_bytes=10, retry_s=2.0)
    data = bytes(range(50))
    assert window.due(0.0) == [0]
    assert window.due(1.9) == []
    assert window.due(2.0) == [0]
    assert window.take(piece(data, 0, 10), where="f")
    assert list(window.ready()) == [data[:10]]
    assert window.due(2.0) == [10, 20, 30]
    assert not window.take(ChunkResponse("busy", 20, 0), where="f")
    assert window.due(3.0) == []
    window.forget_asked()
    assert window.due(3.0) == [10, 20, 30]


def test_what_was_never_asked_for_is_not_taken() -> None:
    window = ChunkWindow(limit_bytes=100, window=2, chunk_bytes=10)
    data = bytes(50)
    window.due(0.0)
    assert window.take(piece(data, 0, 10), where="f")
    assert not window.take(piece(data, 40, 10), where="f")
    assert not window.take(piece(data, 0, 10), where="f")


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        (ChunkResponse("ok", 0, 101, bytes(10)), BundleError, "101 bytes, at most 100"),
        (ChunkResponse("ok", 0, 50, bytes(9)), LinkError, "has 9 bytes of 50, expected 10 of 50"),
    ],
)
def test_a_file_that_is_not_what_was_announced_ends_the_transfer(
    response: ChunkResponse, error: type[Exception], says: str
) -> None:
    window = ChunkWindow(limit_bytes=100, chunk_bytes=10)
    window.due(0.0)
    with pytest.raises(error, match=says):
        window.take(response, where="f")


def test_a_length_that_changes_on_the_way_ends_the_transfer() -> None:
    window = ChunkWindow(limit_bytes=100, chunk_bytes=10)
    window.due(0.0)
    window.take(ChunkResponse("ok", 0, 50, bytes(10)), where="f")
    window.due(0.0)
    with pytest.raises(LinkError, match="of 60, expected 10 of 50"):
        window.take(ChunkResponse("ok", 10, 60, bytes(10)), where="f")


@given(st.sampled_from(["ok", "absent", "busy"]), st.integers(0, 2**40), st.binary(max_size=200))
def test_a_response_is_read_back(status: str, offset: int, data: bytes) -> None:
    body = data if status == "ok" else b""
    response = ChunkResponse(status, offset, offset + len(body), body)  # type: ignore[arg-type]
    assert ChunkResponse.from_bytes(response.to_bytes(), where="rsp") == response


@given(st.binary(max_size=300))
def test_any_bytes_are_a_response_or_an_input_error(payload: bytes) -> None:
    for data in (payload, b"KCH1" + payload):
        try:
            response = ChunkResponse.from_bytes(data, where="rsp")
        except InputError:
            continue
        assert response.offset + len(response.data) <= response.total_bytes


def test_a_response_keeps_its_bytes() -> None:
    header = b"KCH1\x00" + (7).to_bytes(8, "big") + (9).to_bytes(8, "big")
    assert ChunkResponse("ok", 7, 9, b"ab").to_bytes() == header + b"ab"


@pytest.mark.parametrize(
    "payload", [b"", b"KCH1", b"KCH1\x00" + bytes(15), b"KCH2" + bytes(17), b"KCH1\x07" + bytes(16),
                b"KCH1\x01" + bytes(15) + b"\x01x", bytes(22 + MAX_CHUNK_BYTES)],
)  # fmt: skip
def test_a_malformed_response_is_refused(payload: bytes) -> None:
    with pytest.raises(InputError):
        ChunkResponse.from_bytes(payload, where="rsp")


class Shelf:
    """Targets by path, and how often each was read."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.reads: list[str] = []

    def __call__(self, path: str) -> bytes:
        self.reads.append(path)
        if path not in self.files:
            raise StorageError(f"{path}: is damaged")
        return self.files[path]


def server(shelf: Shelf, now: list[float], **limits: float) -> ChunkServer:
    made = ChunkServer(shelf, clock=lambda: now[0], **limits)  # type: ignore[arg-type]
    made.offer({"5.targets.json": b"metadata"}, frozenset({"a", "b", "damaged"}))
    return made


def ask(place: str, path: str, offset: int = 0, length: int = 10) -> bytes:
    return ChunkRequest.parse({"place": place, "path": path, "offset": offset, "length": length}).to_bytes()


def test_the_server_gives_chunks_of_what_is_published_and_of_nothing_else() -> None:
    shelf = Shelf(a=b"0123456789abc", secret=b"not published")
    made = server(shelf, [0.0])
    assert made.answer("cam-1", ask("targets", "a"), where="req") == ChunkResponse("ok", 0, 13, b"0123456789")
    assert made.answer("cam-1", ask("targets", "a", 10), where="req") == ChunkResponse("ok", 10, 13, b"abc")
    assert made.answer("cam-1", ask("targets", "a", 99), where="req") == ChunkResponse("ok", 13, 13, b"")
    assert made.answer("cam-1", ask("metadata", "5.targets.json"), where="req").data == b"metadata"
    for place, path in (("targets", "secret"), ("metadata", "a"), ("metadata", "6.targets.json")):
        assert made.answer("cam-1", ask(place, path), where="req").status == "absent"
    assert shelf.reads == ["a"], "one read a transfer, not one a chunk"
    made.offer({}, frozenset())
    assert made.answer("cam-1", ask("targets", "a"), where="req").status == "absent"


def test_a_damaged_target_is_absent_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert server(Shelf(), [0.0]).answer("cam-1", ask("targets", "damaged"), where="req").status == "absent"
    assert "damaged: is damaged" in caplog.text


def test_the_cache_is_bounded() -> None:
    shelf = Shelf(a=bytes(60), b=bytes(60))
    made = server(shelf, [0.0], cache_bytes=100)
    for path in ("a", "b", "a", "a"):
        made.answer("cam-1", ask("targets", path), where="req")
    assert shelf.reads == ["a", "b", "a"]


def test_one_device_cannot_use_up_the_controller() -> None:
    now = [0.0]
    made = server(Shelf(a=bytes(100)), now, burst_bytes=30, bytes_per_s=10.0)
    answers = [made.answer("cam-1", ask("targets", "a"), where="req").status for _ in range(4)]
    assert answers == ["ok", "ok", "ok", "busy"]
    assert made.answer("cam-2", ask("targets", "a"), where="req").status == "ok"
    now[0] = 1.0
    assert made.answer("cam-1", ask("targets", "a"), where="req").status == "ok"
    assert made.answer("cam-1", ask("targets", "a"), where="req").status == "busy"


def test_an_allowance_never_exceeds_its_burst_and_a_clock_set_back_gives_nothing() -> None:
    allowance = Allowance(burst_bytes=10, bytes_per_s=1.0, now_s=0.0)
    assert not allowance.take(11, now_s=1e9)
    assert allowance.take(10, now_s=1e9)
    assert not allowance.take(1, now_s=5.0)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[]", b"x" * 3000, b'{"place":"targets","path":"../x","offset":-1}',
     b'{"place":"home","path":"a","offset":0}', b'{"place":"targets","path":"/a","offset":0}',
     b'{"place":"targets","path":"a","offset":0,"length":131073}'],
)  # fmt: skip
def test_a_malformed_request_is_refused(payload: bytes) -> None:
    with pytest.raises(InputError):
        server(Shelf(), [0.0]).answer("cam-1", payload, where="req")
