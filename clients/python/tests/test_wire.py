"""The messages, byte for byte."""

from __future__ import annotations

import json

import pytest

from wattspan import wire


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"span": 'a"b\\c/\u2028é\N{FIRE}', "at_ns": -1, "weight": 2.5},
        {"wait_settled": True, "attributes": {"k": "v", "": "\t"}, "domains": ["a", 'b"'], "name": None},
        {"at_ns": 2**70, "weight": 1e-5},
    ],
)
def test_a_message_is_json_and_a_nul(parameters: dict[str, object]) -> None:
    message = wire.oneway("OpenSpan", parameters)
    assert message.endswith(b"\0") and message.count(b"\0") == 1
    expected = {"method": "org.wattspan.Meter.OpenSpan", "parameters": parameters, "oneway": True}
    assert json.loads(message[:-1]) == expected
    assert json.loads(wire.call("GetSpan", parameters)[:-1]) == {
        "method": "org.wattspan.Meter.GetSpan",
        "parameters": parameters,
    }


def test_a_text_is_cut_at_a_whole_character_and_has_no_control_characters() -> None:
    assert wire.text("plain", 128) == "plain"
    assert wire.text("é" * 100, 101) == "é" * 50
    assert wire.text("a\x00b\x1bc\x85d\x7f", 128) == "a b c d "
    assert wire.text("\udcff", 128) == "?"
    assert wire.text(7, 128) == "7"


def test_notes_stay_within_a_message() -> None:
    many = wire.notes((str(number), '"' * 5000) for number in range(1000))
    assert 20 < len(many) <= wire.PAIRS
    assert len(wire.oneway("CloseSpan", {"span": "s" * 128, "attributes": many})) < 64 << 10
    assert wire.notes([("a", None), ("", 1), ("b", 2)]) == {"b": "2"}
    assert wire.notes([("a", 1)], room=0) == {}


def test_weights_are_those_that_the_daemon_takes() -> None:
    assert [wire.weight(given) for given in (0, 1, 1e6, 1e-9)] == [0.0, 1.0, 1e6, wire.LIGHTEST]
    assert [wire.weight(given) for given in (-1, float("nan"), float("inf"), 1e7)] == [None] * 4
