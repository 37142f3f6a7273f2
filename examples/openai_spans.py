#!/usr/bin/env python3
"""Measures the energy of concurrent requests to an OpenAI-compatible server, each inside a span.

    openai_spans.py --url http://127.0.0.1:8080 --requests 8

Needs only a running wattspand and Python 3.9 or later: a message of the protocol is one JSON object and a NUL byte on a
Unix socket. Each request has two phases: "prefill" until its first token arrives, then "decode". Opens and marks are
oneway calls with the instant of the event, so that the measurement does not delay the request.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import threading
import time
import urllib.parse

METER = "org.wattspan.Meter."

QUESTIONS = [
    "Why is the sky blue, and why is it red in the evening?",
    "Write a short poem about a lighthouse keeper who counts ships.",
    "Explain to a child how a battery stores energy.",
    "What are three good reasons to learn a second language?",
    "Describe how bread is made, from the field to the table.",
    "What is the difference between a virus and a bacterium?",
    "Tell a story about a fox that wanted to fly.",
    "How does a bicycle stay upright while it rolls?",
]


class Refused(Exception):
    """An error reply of the daemon; the first argument is the error's full name."""


class Meter:
    """One connection to wattspand. When it closes, its open spans are closed as abandoned."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.unread = b""

    def call(self, method, **parameters):
        """Sends a call and waits for the reply."""
        self._send({"method": METER + method, "parameters": parameters})
        while b"\0" not in self.unread:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the daemon closed the connection")
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        answer = json.loads(message)
        if "error" in answer:
            raise Refused(answer["error"], answer.get("parameters"))
        return answer.get("parameters", {})

    def tell(self, method, **parameters):
        """Sends a oneway call; takes a few microseconds."""
        self._send({"method": METER + method, "parameters": parameters, "oneway": True})

    def _send(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\0")


def usual_socket():
    """The daemon's socket: from the environment, else the system's path, else the user's."""
    if os.environ.get("WATTSPAN_SOCKET"):
        return os.environ["WATTSPAN_SOCKET"]
    system = "/var/run/wattspan" if sys.platform == "darwin" else "/run/wattspan"
    places = [system, os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "wattspan")]
    places = [os.path.join(place, "wattspan.sock") for place in places]
    return next((place for place in places if os.path.exists(place)), places[0])


def ask(url, model, question, max_tokens, on_first_token):
    """Sends one streaming request and reads the whole response: (text, usage). Raises without a response."""
    address = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc, timeout=600)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    path = address.path.rstrip("/") + "/v1/chat/completions"
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read(300)!r}")
    text, usage = "", None
    # Reads past "[DONE]" to the end: some servers corrupt the next stream after one that is cut short.
    for line in response:
        if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
            continue
        chunk = json.loads(line[len(b"data:"):])
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"]))
        usage = chunk.get("usage") or usage
        content = "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", []))
        if content and not text:
            on_first_token()
        text += content
    connection.close()
    if not text:
        raise RuntimeError("the server answered 200 and said nothing")
    return text, usage


def measured(options, number, question):
    """Sends one request inside a span and returns its row of the table."""
    meter = Meter(options.socket)
    span = f"openai-{os.getpid()}-{number}"
    began = time.monotonic_ns()
    meter.tell("OpenSpan", span=span, name=f"question {number}", at_ns=began,
               attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": options.model})
    meter.tell("MarkPhase", span=span, phase="prefill", at_ns=began)

    def first_token():
        meter.tell("MarkPhase", span=span, phase="decode", at_ns=time.monotonic_ns())

    row = {"question": question}
    notes = {}
    try:
        row["answer"], usage = ask(options.url, options.model, question, options.max_tokens, first_token)
        if usage:
            row["usage"] = usage
            notes["gen_ai.usage.input_tokens"] = str(usage["prompt_tokens"])
            notes["gen_ai.usage.output_tokens"] = str(usage["completion_tokens"])
    except (RuntimeError, OSError, http.client.HTTPException, ValueError) as error:
        # A failed request used energy too, so the span is closed, not cancelled.
        row["error"] = notes["error.type"] = str(error)
    ended = time.monotonic_ns()
    row["account"] = meter.call("CloseSpan", span=span, at_ns=ended, attributes=notes, wait_settled=True)["account"]
    return row


def joules(uj, error_uj=None):
    """Formats a figure, or the fact that it is unknown."""
    if uj is None:
        return "unknown"
    figure = f"{uj / 1e6:.3f} J"
    return figure if error_uj is None else f"{figure} ± {error_uj / 1e6:.3f}"


def known_sum(figures):
    """The sum, or None if a part is unknown."""
    figures = list(figures)
    return None if None in figures else sum(figures)


def quality(account):
    """The grade, and whether the machine is simulated."""
    return account.get("grade", "unknown") + (", simulated" if account.get("simulated") else "")


def show(result):
    """Prints the accounts, the overlap and the balance as a table."""
    accounts = [row["account"] for row in result["requests"]]
    print(f"\n{'question':12} {'energy':>20} {'prefill':>10} {'decode':>10} {'window':>10} {'time':>8} "
          f"{'tokens':>6} {'J/token':>8} {'grade':>19} {'at once':>7}")
    for row in result["requests"]:
        account = row["account"]
        phases = {phase["name"]: phase.get("share_uj") for phase in account["phases"]}
        tokens = row.get("usage", {}).get("completion_tokens")
        share = account.get("share_uj")
        each = f"{share / 1e6 / tokens:.3f}" if share is not None and tokens else "unknown"
        seconds = (account["closed_ns"] - account["opened_ns"]) / 1e9
        print(f"{account['name']:12} {joules(share, account.get('error_uj')):>20} "
              f"{joules(phases.get('prefill')):>10} {joules(phases.get('decode')):>10} "
              f"{joules(account.get('window_uj')):>10} {seconds:>6.2f} s {tokens or 'unknown':>6} {each:>8} "
              f"{quality(account):>19} {account['peak_concurrency']:>7}")
        if "error" in row:
            print(f"{'':12} failed: {row['error']}")
    overlap = result["overlap"]
    print(f"\nall shares together    {joules(known_sum(a.get('share_uj') for a in accounts))}")
    print(f"all windows together   {joules(known_sum(a.get('window_uj') for a in accounts))}"
          "   (what would be claimed without knowing of the overlap)")
    print(f"at once                {overlap['mean_concurrency']:.2f} on average over {overlap['wall_ns'] / 1e9:.2f} s")
    before = {domain["domain"]: domain["attributed_uj"] for domain in result["balance_before"]}
    for domain in result["balance"]:
        name = domain["domain"]
        shares = known_sum(share.get("share_uj") for a in accounts for share in a["domains"] if share["domain"] == name)
        given = domain["attributed_uj"] - before[name]
        print(f"shares of {name:12}  {shares} of {given} µJ attributed meanwhile"
              f"{': exact, no other span was open' if shares == given else ''}")
        holds = domain["measured_uj"] == domain["attributed_uj"] + domain["unattributed_uj"]
        print(f"balance of {domain['domain']:12} measured {domain['measured_uj']} = attributed "
              f"{domain['attributed_uj']} + unattributed {domain['unattributed_uj']} µJ: "
              f"{'exact' if holds else 'WRONG'}")


def served_model(url):
    """The first model that the server lists."""
    address = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc, timeout=30)
    connection.request("GET", address.path.rstrip("/") + "/v1/models")
    return json.load(connection.getresponse())["data"][0]["id"]


def run(options):
    """Sends all requests, at most `concurrency` at once, and collects the accounts."""
    meter = Meter(options.socket)
    info = meter.call("GetInfo")
    before = meter.call("GetBalance")["balance"]
    rows = [None] * options.requests
    free = threading.Semaphore(options.concurrency)

    def work(number):
        with free:
            rows[number] = measured(options, number, QUESTIONS[number % len(QUESTIONS)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(options.requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [row for row in rows if row is not None]
    accounts = [row["account"] for row in rows]
    if not accounts:
        sys.exit("no question could be measured")
    spent_ns = sum(account["closed_ns"] - account["opened_ns"] for account in accounts)
    wall_ns = max(a["closed_ns"] for a in accounts) - min(a["opened_ns"] for a in accounts)
    return {
        "url": options.url,
        "model": options.model,
        "info": info,
        "requests": rows,
        "overlap": {"wall_ns": wall_ns, "mean_concurrency": spent_ns / wall_ns},
        "balance_before": before,
        "balance": meter.call("GetBalance")["balance"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the server, without /v1")
    parser.add_argument("--model", help="the model to ask for (default: the first that the server names)")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="how many questions (default 8)")
    parser.add_argument("--concurrency", type=int, metavar="N", help="how many at once (default: all)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer (default 64)")
    parser.add_argument("--socket", default=usual_socket(), metavar="PATH", help="wattspand's socket")
    parser.add_argument("--save", metavar="FILE", help="write everything to FILE as JSON")
    options = parser.parse_args()
    options.concurrency = options.concurrency or options.requests
    try:
        options.model = options.model or served_model(options.url)
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        sys.exit(f"no model server at {options.url}: {error}")
    try:
        result = run(options)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        print(f"no wattspand at {options.socket}: {error}", file=sys.stderr)
        sys.exit(4)
    show(result)
    if options.save:
        with open(options.save, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1, ensure_ascii=False)
            file.write("\n")
    sys.exit(1 if any("error" in row for row in result["requests"]) else 0)


if __name__ == "__main__":
    main()
