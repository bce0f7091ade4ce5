"""Frames: any split of the stream gives the same messages."""

from __future__ import annotations

import random
from typing import Any

import pytest

from owndist.wire import frames
from owndist.wire.frames import FrameDecoder, encode_frame

MESSAGES: list[list[tuple[Any, ...]]] = [
    [],
    [("a",)],
    [("b", 1, b"x" * 10), ("c", None, (1, 2))],
    [("long", b"y" * 70_000)],
    [("d",)] * 50,
]
FLAT = [message for batch in MESSAGES for message in batch]
STREAM = b"".join(encode_frame(batch) for batch in MESSAGES)


def feed_all(pieces: list[bytes]) -> list[tuple[Any, ...]]:
    decoder = FrameDecoder()
    messages = [message for piece in pieces for message in decoder.feed(piece)]
    assert decoder.pending == 0
    return messages


def test_whole_frames_come_back_one_by_one() -> None:
    decoder = FrameDecoder()
    for batch in MESSAGES:
        assert decoder.feed(encode_frame(batch)) == batch


def test_many_frames_in_one_read() -> None:
    assert feed_all([STREAM]) == FLAT


def test_a_read_of_one_byte_at_a_time() -> None:
    small = encode_frame([("b", 1)]) + encode_frame([("c",)])
    assert feed_all([small[i : i + 1] for i in range(len(small))]) == [("b", 1), ("c",)]


def test_random_splits(seed: int) -> None:
    for _ in range(50):
        cuts = sorted(random.sample(range(len(STREAM)), random.randrange(1, 40)))
        pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        assert feed_all(pieces) == FLAT


def test_a_frame_and_the_beginning_of_the_next_in_one_read() -> None:
    decoder = FrameDecoder()
    second = encode_frame([("second", b"z" * 1000)])
    assert decoder.feed(encode_frame([("first",)]) + second[:3]) == [("first",)]
    assert decoder.pending == 3
    assert decoder.feed(second[3:500]) == []
    assert decoder.feed(second[500:] + encode_frame([("third",)])) == [
        ("second", b"z" * 1000),
        ("third",),
    ]
    assert decoder.pending == 0


def test_a_frame_of_many_reads_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode_frame([("large", bytes(1 << 20))])
    decoder = FrameDecoder()
    step = 1024
    for start in range(0, len(frame) - step, step):
        assert decoder.feed(frame[start : start + step]) == []
        # What has come stays in its pieces: nothing is copied again and again.
        assert len(decoder._pieces) == start // step + 1
    assert len(decoder.feed(frame[len(frame) - len(frame) % step :])) == 1


def test_the_bytes_fed_may_be_a_view_that_is_reused() -> None:
    decoder = FrameDecoder()
    frame = encode_frame([("m", 1)])
    buffer = bytearray(frame[:6])
    assert decoder.feed(bytes(buffer)) == []
    buffer[:] = bytes(6)
    assert decoder.feed(frame[6:]) == [("m", 1)]


def test_a_frame_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_LARGEST", 1000)
    with pytest.raises(OverflowError, match="too large"):
        encode_frame([("x", bytes(2000))])
