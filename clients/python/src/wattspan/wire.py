"""Encodes messages: one JSON object and a NUL byte each (Varlink).

Applies the daemon's limits: it refuses texts with control characters, texts that are too long, and messages of more
than 64 KiB, and closes the connection after invalid JSON. A oneway call would fail without an error, so values are
sanitized here. Never raises for a value that can be converted to text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

METER = "org.wattspan.Meter."

SPAN_BYTES = 128
NAME_BYTES = 256
PHASE_BYTES = 128
KEY_BYTES = 64
VALUE_BYTES = 1024
PAIRS = 64
"""Maximum number of attributes of one span, at its opening and its close together."""

NOTES_BYTES = 32 << 10
"""Limit of the attributes in one message, in bytes, so that it stays well below the daemon's 64 KiB."""

HEAVIEST = 1e6
LIGHTEST = 1 / 65536

_quoted = json.encoder.encode_basestring


def call(method: str, parameters: Mapping[str, Any]) -> bytes:
    """Encodes a call with a reply."""
    return f'{{"method":"{METER}{method}","parameters":{_object(parameters)}}}\0'.encode("utf-8", "replace")


def oneway(method: str, parameters: Mapping[str, Any]) -> bytes:
    """Encodes a call without a reply."""
    words = f'{{"method":"{METER}{method}","oneway":true,"parameters":{_object(parameters)}}}\0'
    return words.encode("utf-8", "replace")


def _object(fields: Mapping[str, Any]) -> str:
    # json.dumps creates an encoder for each call, which would dominate the cost of a span.
    return "{" + ",".join([f"{_quoted(name)}:{_value(value)}" for name, value in fields.items()]) + "}"


def _value(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return repr(value)
    if kind is dict:
        return _object(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def text(given: object, most: int) -> str:
    """Converts `given` to a text that the daemon accepts: at most `most` bytes, no control characters."""
    words = given if isinstance(given, str) else str(given)
    if len(words) <= most and words.isascii() and words.isprintable():
        return words
    # A lone surrogate and a character that is cut in half are not valid UTF-8.
    clean = "".join(" " if _is_control(char) else char for char in words[:most])
    return clean.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _is_control(char: str) -> bool:
    point = ord(char)
    return point < 0x20 or 0x7F <= point <= 0x9F


def notes(given: Iterable[tuple[str, object]], room: int = PAIRS) -> dict[str, str]:
    """Converts attributes to texts that the daemon accepts: the first `room` of them, without those that are None."""
    taken: dict[str, str] = {}
    size = 0
    for key, value in given:
        if value is None or key == "":
            continue
        key, value = text(key, KEY_BYTES), text(value, VALUE_BYTES)
        # A quote or backslash takes two bytes on the wire.
        size += 2 * (len(key.encode()) + len(value.encode())) + 8
        if len(taken) >= room or size > 2 * NOTES_BYTES - 4096:
            break
        taken[key] = value
    return taken


def weight(given: float) -> float | None:
    """A weight that the daemon accepts, or None if `given` is NaN, negative, infinite or too large."""
    number = float(given)
    if not math.isfinite(number) or number < 0 or number > HEAVIEST:
        return None
    return max(number, LIGHTEST) if number > 0 else 0.0
