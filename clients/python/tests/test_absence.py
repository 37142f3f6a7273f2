"""Daemons that are absent, die, stall, send invalid data or refuse the client: the program continues, with a reason."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from conftest import SLUGGISH, Daemon, until

import wattspan
from wattspan.link import LARGEST_BACKLOG
from wattspan.place import places


def test_without_a_daemon_nothing_is_measured_and_nothing_fails(no_daemon: None) -> None:
    with wattspan.span("alone", weight=2) as s:
        s.phase("decode")
        s.weight(3)
        with wattspan.span("inside") as inside:
            pass
    for each in (s, inside):
        account = each.result()
        assert not account.available and not each.available
        assert account.reason == (
            "no daemon at /nonexistent/wattspan.sock: there is no such socket; start wattspand, or set WATTSPAN_SOCKET"
        )
        assert account.energy_j is account.share_uj is account.error_j is each.energy_j is None
    assert "no daemon" in str(s.result())
    with pytest.raises(wattspan.Unavailable, match="no daemon"):
        wattspan.info()
    assert not wattspan.span("never opened").result().available


def test_strict_mode_raises_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        wattspan.configure("/nonexistent/wattspan.sock", strict=True)
        with pytest.raises(wattspan.Unavailable, match="no daemon"), wattspan.span("strict"):
            raise AssertionError("the block was entered")
        monkeypatch.setenv("WATTSPAN_STRICT", "1")
        wattspan.configure("/nonexistent/wattspan.sock")
        with pytest.raises(wattspan.Unavailable, match="no daemon"):
            wattspan.begin("strict")
    finally:
        monkeypatch.undo()
        wattspan.configure("/nonexistent/wattspan.sock")


def test_a_strict_span_raises_the_reason_of_a_refusal(daemon: Daemon) -> None:
    wattspan.configure(daemon.socket, strict=True)
    with wattspan.span("fine") as s:
        with wattspan.span("inside"):
            pass
        with pytest.raises(ValueError, match="invalid weight"):
            s.weight(-1)
    assert s.energy_j is not None and s.result().nested.count == 1
    with pytest.raises(wattspan.Refused) as refused:
        wattspan.begin("wrong", domains=["gpu-7"])
    assert refused.value.error == "NoSuchDomain" and refused.value.parameters == {"domain": "gpu-7"}


def test_a_refusal_of_a_oneway_call_is_explained_in_the_account(daemon: Daemon) -> None:
    with wattspan.span("wrong", domains=["gpu-7"]) as s:
        pass
    assert not s.result().available
    assert "its opening was refused" in (s.result().reason or "")


def test_the_message_for_a_user_without_access_names_the_group(boot: Callable[..., Daemon]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without access")
    daemon = boot()
    daemon.directory.joinpath("run").chmod(0o755)
    os.chmod(daemon.socket, 0o666)
    code = (
        "import os, wattspan; os.setgid(65534); os.setuid(65534)\n"
        f"wattspan.configure({daemon.socket!r})\n"
        "with wattspan.span('x') as s: pass\n"
        "print(s.result().reason)"
    )
    source = str(Path(wattspan.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "add this user to the group wattspan" in asked.stdout, asked.stderr


def test_a_daemon_that_dies_in_the_middle_takes_the_open_span_and_no_other(daemon: Daemon) -> None:
    with wattspan.span("before") as before:
        pass
    assert before.energy_j is not None
    with wattspan.span("during") as during:
        daemon.kill()
    assert during.energy_j is None
    assert "daemon" in (during.result().reason or "")
    with wattspan.span("after") as after:
        pass
    assert not after.result().available
    daemon.start()
    until("found again", lambda: wattspan.begin("probe").end().available)
    with wattspan.span("again") as again:
        pass
    assert again.energy_j is not None


def test_the_next_span_detects_a_restarted_daemon(daemon: Daemon) -> None:
    with wattspan.span("first") as first:
        pass
    assert first.energy_j is not None
    across = wattspan.begin("across")
    # Without the attendant thread only the next message detects the end of the connection.
    until("alone", lambda: all(thread.name != "wattspan" for thread in threading.enumerate()))
    daemon.kill()
    daemon.start()
    with wattspan.span("second") as second:
        pass
    assert second.energy_j is not None
    across.end()
    assert across.energy_j is None
    assert "lost while the span was open" in (across.result().reason or "")


def test_a_stalled_daemon_delays_no_caller(daemon: Daemon) -> None:
    with wattspan.span("first") as first:
        pass
    assert first.energy_j is not None
    daemon.pause()
    notes = {str(number): "x" * 1000 for number in range(20)}
    reasons = set()
    # Far more than the socket's and the client's buffers hold together.
    for _ in range(LARGEST_BACKLOG // 20_000 + 60):
        with wattspan.span("stalled", attributes=notes) as s:
            pass
        reasons.add(s.reason)
    assert any(reason and "does not read" in reason for reason in reasons)
    assert first.result(0.1).energy_j is not None
    with wattspan.span("still stalled") as s:
        pass
    assert s.result(0.2).energy_j is None
    daemon.go_on()
    until("found again", lambda: wattspan.begin("probe").end().result(1).energy_j is not None)


def test_what_a_busy_daemon_does_not_take_at_once_arrives_later(daemon: Daemon) -> None:
    notes = {str(number): "x" * 1000 for number in range(20)}
    daemon.pause()
    spans = [wattspan.begin("late", attributes=notes) for _ in range(30)]
    for s in spans:
        s.end()
    daemon.go_on()
    assert all(s.result(60).settled for s in spans)


def test_an_account_that_does_not_settle_is_given_as_it_is(boot: Callable[..., Daemon]) -> None:
    wattspan.configure(boot(SLUGGISH).socket)
    with wattspan.span("slow") as s:
        pass
    until("seen", lambda: s.result(0.2).available)
    account = s.result(0.2)
    assert account.state == "provisional" and not account.settled
    assert account.reason == "not settled within 0.2 s"
    assert asyncio.run(s.settled(0.2)).state == "provisional"


@pytest.mark.parametrize("answer", [b"garbage\0", b"[]\0", b"{}\0", b'{"parameters":{"account":7}}\0', b"\0\0\0", b""])
def test_a_server_that_sends_invalid_data_raises_nothing(tmp_path: Path, answer: bytes) -> None:
    path = f"/tmp/wattspan-nonsense-{os.getpid()}.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
                with client:
                    while client.recv(65536):
                        client.sendall(answer)
                        if not answer:
                            break
            except OSError:
                if server.fileno() < 0:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        wattspan.configure(path)
        for _ in range(20):
            with wattspan.span("x") as s:
                pass
            account = s.result(0.3)
            assert account.energy_j is None and account.reason
    finally:
        os.unlink(path)
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        wattspan.configure("/nonexistent/wattspan.sock")


def test_a_forked_child_leaves_its_parents_connection_alone(daemon: Daemon) -> None:
    with wattspan.span("parent", child="none") as s:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            # Inherited spans have no effect; spans opened here belong to the child.
            code = 1
            try:
                s.phase("by the child")
                s.weight(9)
                s.end()
                assert wattspan.current() is None
                with wattspan.span("child") as own:
                    time.sleep(0.01)
                assert own.energy_j is not None and own._parent is None
                os.write(writer, own.id.encode())
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        its_name = os.read(reader, 256).decode()
        os.close(reader)
        os.close(writer)
        assert s.result().state == "open" and s.result().phases == ()
    assert s.result().settled and s.result().weight == 1
    assert wattspan.attach(its_name).result().name == "child" and its_name != s.id


def test_children_that_are_forked_while_threads_send_do_not_hang(daemon: Daemon) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with wattspan.span("busy") as s:
                pass
            s.result(60)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(50)
                with wattspan.span("child") as s:
                    pass
                os._exit(0 if s.energy_j is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def test_a_signal_handler_may_open_spans_in_the_middle_of_anything(daemon: Daemon) -> None:
    inside: list[wattspan.Span] = []

    def handler(number: int, frame: FrameType | None) -> None:
        with wattspan.span("signal", parent=None) as s:
            pass
        inside.append(s)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        spans = []
        until_then = time.monotonic() + 0.5
        # About 1,500 in all: the client buffers that many, however slow the daemon is.
        while time.monotonic() < until_then:
            for _ in range(5):
                with wattspan.span("work") as s:
                    pass
                spans.append(s)
            time.sleep(0.002)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert inside
    accounts = [s.result(60) for s in [*spans[-100:], *inside[-100:]]]
    assert {(account.state, account.reason) for account in accounts} == {("settled", None)}


def test_the_places_are_those_of_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTSPAN_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr("sys.platform", "linux")
    assert places() == ["/run/wattspan/wattspan.sock", "/run/user/7/wattspan/wattspan.sock"]
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert places() == ["/var/run/wattspan/wattspan.sock"]
    monkeypatch.setenv("WATTSPAN_SOCKET", "/x")
    assert places() == ["/x"] and places("/y") == ["/y"]
