"""Sends requests through `wattspan proxy` with the official OpenAI SDK, and shows the energy of each.

    pip install openai
    wattspan proxy --upstream http://127.0.0.1:8000 --annotate usage &
    python examples/proxy_openai.py --url http://127.0.0.1:8088 --concurrency 1 2 4 8

Only the base URL differs from other programs that use the SDK. Sends streaming and other requests at the given
concurrency; the energy is read from `usage` (which the proxy extends with --annotate usage) and from the header
`wattspan-energy`. Checks that the responses through the proxy are complete and, with --socket, that the requests'
shares add up to the daemon's balance, which requires that no other client has a span open.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import time

from openai import AsyncOpenAI

QUESTIONS = [
    "Name three rivers.",
    "What is a joule?",
    "Write a sentence about the sea.",
    "Count from one to five.",
    "Why is the sky blue?",
    "Give a synonym for 'quick'.",
    "What do bees make?",
    "Say something kind.",
]


class Meter:
    """A connection to the daemon, for its balance."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)

    def call(self, method, **parameters):
        words = {"method": "org.wattspan.Meter." + method, "parameters": parameters}
        self.socket.sendall(json.dumps(words).encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise ConnectionError("the daemon hung up")
            answer += piece
        answer = json.loads(answer[:-1])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer}")
        return answer["parameters"]


async def streamed(client, model, question, tokens):
    """One streamed response: (text, usage)."""
    text, usage = "", None
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text, usage


async def whole(client, model, question, tokens):
    """One response that is not streamed: (text, usage)."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
    )
    if not raw.headers.get("wattspan-energy"):
        raise RuntimeError("the reply has no header wattspan-energy")
    reply = raw.parse()
    return reply.choices[0].message.content, reply.usage


async def ask(options, concurrency, how):
    """Sends requests at one concurrency; returns the row of the table."""
    rows = []
    limit = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=options.url.rstrip("/") + "/v1", api_key="none", timeout=600) as client:

        async def one(number):
            async with limit:
                question = QUESTIONS[number % len(QUESTIONS)]
                text, usage = await how(client, options.model, question, options.max_tokens)
                if not text:
                    raise RuntimeError("the server said nothing")
                energy = (usage.model_extra or {}).get("energy") if usage else None
                rows.append({"tokens": usage.completion_tokens if usage else None, "energy": energy})

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(max(options.requests, concurrency))))
        return rows, time.monotonic() - began


def show(how, concurrency, rows, seconds):
    settled = [row["energy"] for row in rows if row["energy"] and row["energy"]["state"] == "settled"]
    shares = [energy["share_uj"] for energy in settled if "share_uj" in energy]
    tokens = [row["tokens"] for row in rows if row["tokens"]]
    joules = sum(shares) / 1e6
    mean = f"{joules / len(shares):.3f} J" if shares else "unknown"
    each = f"{joules / sum(tokens):.4f}" if shares and tokens else "unknown"
    print(
        f"{how:9} {concurrency:>7} {len(rows):>8} {len(settled):>7} {sum(tokens):>7} {seconds:>7.1f} s "
        f"{mean:>12} {each:>10}"
    )
    return sum(shares)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the proxy, without /v1")
    parser.add_argument("--model", default="any", help="the model to ask for")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="least questions in a row (default 8)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="N")
    parser.add_argument("--max-tokens", type=int, default=24, metavar="N")
    parser.add_argument("--socket", default=os.environ.get("WATTSPAN_SOCKET"), help="wattspand's socket, for its balance")
    options = parser.parse_args()
    meter = Meter(options.socket) if options.socket else None
    before = meter.call("GetBalance")["balance"] if meter else []
    print(f"{'':9} {'at once':>7} {'answers':>8} {'settled':>7} {'tokens':>7} {'time':>9} {'mean energy':>12} {'J/token':>10}")
    total = 0
    for name, how in (("streamed", streamed), ("whole", whole)):
        for concurrency in options.concurrency:
            rows, seconds = asyncio.run(ask(options, concurrency, how))
            total += show(name, concurrency, rows, seconds)
    print(f"all shares together {total} µJ")
    if meter:
        after = meter.call("GetBalance")["balance"]
        given = {row["domain"]: row["attributed_uj"] for row in before}
        meanwhile = sum(row["attributed_uj"] - given[row["domain"]] for row in after)
        print(f"attributed meanwhile {meanwhile} µJ: {'exact' if meanwhile == total else 'others had spans open, or some are nested'}")
        for row in after:
            holds = row["measured_uj"] == row["attributed_uj"] + row["unattributed_uj"]
            print(f"balance of {row['domain']:12} {'exact' if holds else 'WRONG'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
