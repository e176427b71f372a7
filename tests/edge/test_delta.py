from __future__ import annotations

import hashlib
import lzma
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds.bundles import model_bytes

from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.updates import delta as codec
from kasmina_edge.updates.delta import apply_delta, encodings, make_delta, read_header

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def stream(label: str, length: int) -> bytes:
    """Reproducible noise."""
    blocks = (hashlib.sha256(f"{label}{i}".encode()).digest() for i in range(length // 32 + 1))
    return b"".join(blocks)[:length]


def golden_pair() -> tuple[bytes, bytes]:
    parent = stream("parent", 3000)
    result = bytearray(parent[:1200] + stream("graft", 150) + parent[1200:2900])
    for at in range(40, 2600, 97):
        result[at] = (result[at] + 1) % 256
    return parent, bytes(result)


def packed(parent: bytes, result_bytes: int, number: int, payload: bytes, result: bytes = b"") -> bytes:
    digests = hashlib.sha256(parent).digest(), hashlib.sha256(result).digest()
    return struct.pack(">4sB32s32sI", b"KDL1", number, *digests, result_bytes) + payload


@QUICK
@given(st.binary(max_size=600), st.binary(max_size=600), st.integers(0, 600), st.binary(max_size=60))
def test_any_pair_comes_back_in_every_codec(parent: bytes, other: bytes, at: int, inserted: bytes) -> None:
    for result in (other, parent[:at] + inserted + parent[at:]):
        every = encodings(parent, result)
        assert set(every) == {0, 1, 2}
        for number, made in every.items():
            assert read_header(made).codec == number
            assert apply_delta(parent, made, result_bytes=len(result)) == result
        assert make_delta(parent, result) == min(every.values(), key=len)


@QUICK
@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2))
def test_garbage_raises_only_bundle_errors(parent: bytes, payload: bytes, number: int) -> None:
    for made in (payload, packed(parent, 100, number, payload)):
        with pytest.raises(BundleError):
            apply_delta(parent, made, result_bytes=100)


@QUICK
@given(st.integers(0, 1 << 30), st.integers(0, 7), st.integers(0, 2))
def test_a_flipped_bit_never_gives_other_bytes(at: int, bit: int, number: int) -> None:
    parent, result = golden_pair()
    made = bytearray(encodings(parent, result)[number])
    made[at % len(made)] ^= 1 << bit
    try:
        assert apply_delta(parent, bytes(made), result_bytes=len(result)) == result
    except BundleError:
        return


def test_a_real_model_pair_costs_a_fraction_and_is_deterministic() -> None:
    parent, result = model_bytes("litert", 0), model_bytes("litert", 1)
    made = make_delta(parent, result)
    assert made == make_delta(parent, result)
    assert apply_delta(parent, made, result_bytes=len(result)) == result
    assert len(made) < 0.05 * len(result)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_deltas_of_every_release_are_read(number: int) -> None:
    parent, result = golden_pair()
    made = (GOLDEN / f"delta-{number}.kdl").read_bytes()
    assert read_header(made).codec == number
    assert apply_delta(parent, made, result_bytes=len(result)) == result


def test_another_parent_names_both_digests() -> None:
    parent, result = golden_pair()
    made = make_delta(parent, result)
    with pytest.raises(BundleError) as caught:
        apply_delta(result, made, result_bytes=len(result))
    assert hashlib.sha256(parent).hexdigest()[:12] in caught.value.message
    assert hashlib.sha256(result).hexdigest()[:12] in caught.value.message


def test_a_length_that_was_not_signed_is_refused() -> None:
    parent, result = golden_pair()
    made = make_delta(parent, result)
    with pytest.raises(BundleError, match=rf"gives {len(result)} bytes, {len(result) + 1} are signed"):
        apply_delta(parent, made, result_bytes=len(result) + 1)


@pytest.mark.parametrize("sized", [True, False])
def test_a_bomb_stops_at_the_signed_length(sized: bool) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=sized)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    for number in (0, 1):
        with pytest.raises(BundleError, match=r"at most|signed"):
            apply_delta(b"p" * 16, packed(b"p" * 16, 1000, number, bomb), result_bytes=1000)


def test_an_lzma_bomb_stops_too() -> None:
    bomb = lzma.compress(bytes(3_000_000), lzma.FORMAT_RAW, filters=codec._LZMA_FILTERS)
    with pytest.raises(BundleError, match="longer than"):
        apply_delta(b"p", packed(b"p", 1000, 2, bomb), result_bytes=1000)


def steps(*values: int, tail: bytes = b"") -> bytes:
    """Hand-written instructions: one step's three zigzag integers."""
    out = codec._varint(1) + b"".join(codec._varint(v << 1 if v >= 0 else (-v << 1) - 1) for v in values)
    return codec._pack_zstd(out + tail)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (steps(5, 0, 0, tail=bytes(5)), "reads the parent"),
        (steps(-1, 6, 0, tail=bytes(5)), "negative"),
        (steps(2, 2, 0, tail=bytes(5)), "its steps give 4 bytes"),
        (steps(2, 3, 0, tail=bytes(4)), "its steps give"),
        (codec._pack_zstd(codec._varint(9)), "claims 9 steps"),
        (codec._pack_zstd(codec._varint(1) + b"\x80"), "break off"),
        (codec._pack_zstd(b"\xff" * 12), "break off"),
    ],
)
def test_instructions_stay_inside_their_bounds(payload: bytes, words: str) -> None:
    parent = b"abc"
    with pytest.raises(BundleError, match=words):
        apply_delta(parent, packed(parent, 5, 1, payload), result_bytes=5)


def test_headers_of_other_formats_are_refused() -> None:
    with pytest.raises(BundleError, match="a header alone has 73"):
        read_header(b"KDL1")
    with pytest.raises(BundleError, match="BSDI"):
        read_header(b"BSDIFF40" + bytes(80))
    with pytest.raises(BundleError, match="codec 7 is unknown"):
        read_header(packed(b"", 0, 7, b""))


def test_a_result_that_the_format_cannot_say_is_an_input_error() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(InputError, match="at most"):
        make_delta(b"", Long())


def test_long_files_leave_the_hungry_codecs_out() -> None:
    assert set(encodings(*golden_pair(), steps_up_to_bytes=100)) == {0}


if __name__ == "__main__":
    for codec_number, golden in encodings(*golden_pair()).items():
        (GOLDEN / f"delta-{codec_number}.kdl").write_bytes(golden)
