#!/usr/bin/env python3
"""Measures the energy of every request of a FastAPI server, with three added lines.

    pip install ./clients/python fastapi uvicorn
    fastapi_energy.py                       # serves on 127.0.0.1:8100
    fastapi_energy.py --drive 16            # serves, sends itself 16 concurrent requests, checks the sums

The "model" is a loop that keeps a CPU busy, in place of a real one. The figures need a running wattspand; without one
the server still works, and each response says that its energy is unknown.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import wattspan
from wattspan.asgi import EnergyMiddleware

PATH = "/v1/chat/completions"
accounts: list[wattspan.Account] = []

app = FastAPI()
app.add_middleware(
    EnergyMiddleware, paths=[PATH], annotate=True, on_account=lambda _, account: accounts.append(account)
)


def token(number: int) -> str:
    """About 2 ms of work."""
    return hashlib.pbkdf2_hmac("sha256", b"prompt", str(number).encode(), 4000).hex()[:4]


async def answer(tokens: int) -> AsyncIterator[str]:
    """A response in OpenAI's format, one token per event."""
    for number in range(tokens):
        text = await asyncio.to_thread(token, number)
        yield f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"
    # The request's span is the current span here.
    wattspan.note(**{"gen_ai.usage.output_tokens": tokens})
    yield "data: [DONE]\n\n"


@app.post(PATH)
async def chat(body: dict[str, Any]) -> Any:
    tokens = int(body.get("max_tokens", 16))
    if body.get("stream"):
        return StreamingResponse(answer(tokens), media_type="text/event-stream")
    wattspan.note(**{"gen_ai.usage.output_tokens": tokens})
    return {"text": " ".join([await asyncio.to_thread(token, number) for number in range(tokens)])}


@app.get("/energy")
def energy() -> list[str]:
    """Lists the energy of the latest requests."""
    return [str(account) for account in accounts[-20:]]


def ask(port: int, tokens: int, stream: bool) -> dict[str, Any]:
    """Sends one request; returns the energy from the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST", PATH, json.dumps({"max_tokens": tokens, "stream": stream}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    body = response.read().decode()
    if stream:
        return json.loads(
            next(line for line in body.splitlines() if line.startswith(": wattspan "))[len(": wattspan ") :]
        )
    energy = dict(part.split("=") for part in response.getheader("wattspan-energy", "").split(", ") if part)
    return {**energy, "span": response.getheader("wattspan-span")}


def drive(port: int, questions: int) -> bool:
    """Sends all requests concurrently, every fourth not streamed; returns whether the sums are correct."""
    before = wattspan.balance()
    results: list[Any] = [None] * questions

    def work(number: int) -> None:
        results[number] = ask(port, 4 + number % 13, stream=number % 4 != 3)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.monotonic() + 60
    while len(accounts) < questions and time.monotonic() < end:
        time.sleep(0.01)
    print(f"{'request':34} {'energy':>22} {'decode':>9} {'tokens':>6} {'at once':>7} {'energy in the reply':>20}")
    in_answers = {each["span"]: each for each in results}
    for account in accounts:
        decode = account.phase("decode")
        error = f" ± {account.error_j:.3f}" if account.error_j is not None else ""
        figure = f"{account.energy_j:.3f} J{error}" if account.energy_j is not None else "unknown"
        decode_j = decode.energy_j if decode is not None else None
        said = in_answers.get(account.span, {}).get("share_uj")
        said = "nothing" if said is None else f"{int(said) / 1e6:.3f} J"
        print(
            f"{account.name:34} {figure:>22} {'' if decode_j is None else f'{decode_j:.3f} J':>9} "
            f"{account.attributes['gen_ai.usage.output_tokens']:>6} {account.peak_concurrency:>7} {said!s:>20}"
        )
    return sums_hold(before)


def sums_hold(before: list[dict[str, Any]]) -> bool:
    """Checks requests + unattributed = measured for every domain, in whole microjoules."""
    holds = True
    given_before = {domain["domain"]: domain["attributed_uj"] for domain in before}
    for domain in wattspan.balance():
        name = domain["domain"]
        shares = [share.share_uj for account in accounts if (share := account.domain(name)) is not None]
        if None in shares:
            print(f"{name}: not known")
            continue
        given = domain["attributed_uj"] - given_before[name]
        exact = sum(share or 0 for share in shares) == given
        exact &= domain["measured_uj"] == domain["attributed_uj"] + domain["unattributed_uj"]
        print(
            f"{name:12} requests {sum(share or 0 for share in shares)} of {given} µJ attributed: "
            f"{'exact' if exact else 'NOT EXACT (does anybody else measure?)'}"
        )
        holds &= exact
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--drive", type=int, metavar="N", help="ask itself N questions at once, and end")
    options = parser.parse_args()
    server = uvicorn.Server(uvicorn.Config(app, port=options.port, log_level="warning"))
    if options.drive is None:
        server.run()
        return
    try:
        wattspan.balance()
    except wattspan.Unavailable as why:
        sys.exit(str(why))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        holds = drive(server.servers[0].sockets[0].getsockname()[1], options.drive)
    finally:
        server.should_exit = True
        thread.join()
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
