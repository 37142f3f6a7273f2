"""Messages: one JSON object and a NUL byte each (Varlink).

Owns the bounds on what is sent. The daemon refuses a text with control characters, a text that is too long and a
message of more than 64 KiB, and hangs up on what is no JSON; a call that is not answered would fail in silence, so what
would be refused is made acceptable here. Never raises for a value that can be shown as text.
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
"""Most attributes of one span, those of its opening and of its close together."""

NOTES_BYTES = 32 << 10
"""Most bytes of attributes in one message, so that it stays well below the daemon's 64 KiB."""

HEAVIEST = 1e6
LIGHTEST = 1 / 65536

_quoted = json.encoder.encode_basestring


def call(method: str, parameters: Mapping[str, Any]) -> bytes:
    """A call that is answered."""
    return f'{{"method":"{METER}{method}","parameters":{_object(parameters)}}}\0'.encode("utf-8", "replace")


def oneway(method: str, parameters: Mapping[str, Any]) -> bytes:
    """A call that is not answered."""
    words = f'{{"method":"{METER}{method}","oneway":true,"parameters":{_object(parameters)}}}\0'
    return words.encode("utf-8", "replace")


def _object(fields: Mapping[str, Any]) -> str:
    # json.dumps makes an encoder for each call, which would be the largest part of what a span costs.
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
    """`given` as a text that the daemon takes: at most `most` bytes, no control characters."""
    words = given if isinstance(given, str) else str(given)
    if len(words) <= most and words.isascii() and words.isprintable():
        return words
    # A lone surrogate is no UTF-8, and half a character at the cut is none either.
    clean = "".join(" " if _is_control(char) else char for char in words[:most])
    return clean.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _is_control(char: str) -> bool:
    point = ord(char)
    return point < 0x20 or 0x7F <= point <= 0x9F


def notes(given: Iterable[tuple[str, object]], room: int = PAIRS) -> dict[str, str]:
    """Attributes as the daemon takes them: at most `room`, the first ones; what is None is left out."""
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
    """A weight that the daemon takes, or None for what is none: NaN, negative, infinite, too heavy."""
    number = float(given)
    if not math.isfinite(number) or number < 0 or number > HEAVIEST:
        return None
    return max(number, LIGHTEST) if number > 0 else 0.0
