"""Checks the live page in a browser: live.py BROWSER WATTSPAN WATTSPAND SCREENSHOTS WORK

Drives the browser through its debugging pipe (Chrome DevTools Protocol: JSON objects, each ended by a NUL byte).
"""

import base64
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

browser, wattspan, wattspand = sys.argv[1:4]
shots, work = pathlib.Path(sys.argv[4]), pathlib.Path(sys.argv[5])
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "support"))

from varlink_client import CallError, VarlinkClient  # noqa: E402

TIMEOUT_S = 60
HOSTILE_MODEL = "<img src=x onerror=document.title='owned'>\u202eevil" + "x" * 150
# It uses less than 10 kJ while the page is checked, also on a busy machine: figures_of_top compares joules.
MACHINE = """
name = "a machine with a GPU"
[[domain]]
name = "package-0"
kind = "package"
profile = [[3.0, 6.2], [2.0, 9.5], [1.0, 7]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[3.0, 4], [2.0, 7.2], [1.0, 5]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[4.0, 1.8], [4.0, 2.4]]
quantum_uj = 15
ceiling_w = 100
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[2.0, 18], [5.0, 24], [1.0, 9]]
quantum_uj = 100
ceiling_w = 500
[[domain]]
name = "psys"
kind = "psys"
profile = [[1.0, 150]]
stuck = true
"""


def wait_until(what, holds):
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > deadline:
            raise SystemExit(f"WRONG: {what}: not within {TIMEOUT_S} s; now: {value!r}")
        time.sleep(0.1)


def check(holds, what):
    if not holds:
        raise SystemExit(f"WRONG: {what}")


class Daemon:
    def __init__(self):
        self.socket = work / "run" / "wattspan.sock"
        (work / "machine.toml").write_text(MACHINE)
        (work / "wattspan.toml").write_text("bus = false\n")
        self.start()

    def start(self):
        words = ["--config", work / "wattspan.toml", "--replay", work / "machine.toml", "--socket", self.socket]
        log = open(work / "daemon.log", "a")
        self.process = subprocess.Popen([wattspand, *words, "--state-dir", work / "state"], stderr=log)
        wait_until("the daemon answers", lambda: self.is_ready())

    def is_ready(self):
        try:
            return VarlinkClient(self.socket, TIMEOUT_S).call("GetInfo")
        except (OSError, CallError):
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()


class Load:
    """Requests of three models, some of them at once, until it is stopped."""

    def __init__(self, path):
        self.path, self.stopped = path, threading.Event()
        models = [("qwen3-8b", 0.4), ("qwen3-8b", 0.5), ("llama-3.3-70b", 1.6), ("gemma-3-4b", 0.2)]
        self.threads = [threading.Thread(target=self.run, args=(*of, seed)) for seed, of in enumerate(models)]
        for thread in self.threads:
            thread.start()

    def run(self, model, seconds, seed):
        rng, meter = random.Random(seed), None
        while not self.stopped.is_set():
            try:
                meter = meter or VarlinkClient(self.path, TIMEOUT_S)
                attributes = {"gen_ai.request.model": model}
                span = meter.call("OpenSpan", name="chat", attributes=attributes, process_share=False)["span"]
                time.sleep(seconds * rng.uniform(0.1, 0.3))
                meter.call("MarkPhase", span=span, phase="decode")
                time.sleep(seconds * rng.uniform(0.6, 1.4))
                tokens = {"gen_ai.usage.output_tokens": str(int(seconds * rng.uniform(80, 110)))}
                meter.call("CloseSpan", span=span, attributes=tokens)
                time.sleep(rng.uniform(0, 0.3))
            except (OSError, CallError):
                # The daemon was killed.
                meter = None
                time.sleep(0.1)

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


class Server:
    def __init__(self, daemon, port=0):
        words = ["--socket", daemon.socket, "--json", "serve", "--listen", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen([wattspan, *words], stdout=subprocess.PIPE, text=True)
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.port = int(re.search(r":(\d+)/", self.url).group(1))

    def kill(self):
        self.process.kill()
        self.process.wait()


class Browser:
    def __init__(self):
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
        # No name resolves.
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={work / 'profile'}", "about:blank"]

        def descriptors():
            # The browser reads from 3 and writes to 4. The two may have these numbers here already.
            reader, writer = os.dup(to_read), os.dup(from_write)
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        log = open(work / "browser.log", "w")
        words = [browser, *options]
        self.process = subprocess.Popen(words, stderr=log, stdout=log, close_fds=False, preexec_fn=descriptors, start_new_session=True)
        os.close(to_read)
        os.close(from_write)
        self.buffer, self.number, self.session, self.messages = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        reply = self.answer(method, **parameters)
        check("error" not in reply, f"{method}: {reply}")
        return reply["result"]

    def answer(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                return reply
            self.messages.append(reply)

    def receive(self):
        while b"\0" not in self.buffer:
            more = os.read(self.from_read, 1 << 20)
            check(more, f"the browser ended: {(work / 'browser.log').read_text()[-2000:]}")
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, expression):
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        reply = self.answer("Runtime.evaluate", **asked)
        deadline = time.monotonic() + TIMEOUT_S
        # While a page gives way to the next one, the question is answered by neither.
        while re.search("navigated|context", reply.get("error", {}).get("message", "")) and time.monotonic() < deadline:
            time.sleep(0.05)
            reply = self.answer("Runtime.evaluate", **asked)
        check("error" not in reply, f"{expression}: {reply}")
        reply = reply["result"]
        check("exceptionDetails" not in reply, f"{expression}: {reply.get('exceptionDetails')}")
        return reply["result"].get("value")

    def press(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, theme, width, height=900):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, name, whole=True):
        image = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        (shots / f"{name}.png").write_bytes(base64.b64decode(image["data"]))

    def complaints(self):
        """What the page logged, and what it loaded from elsewhere, since the last call."""
        self.run("0")
        found, self.messages = self.messages, []
        texts = [m["params"]["entry"]["text"] for m in found if m.get("method") == "Log.entryAdded"]
        texts += [str(m["params"]["args"]) for m in found if m.get("method") == "Runtime.consoleAPICalled"]
        texts += [str(m["params"]) for m in found if m.get("method") == "Runtime.exceptionThrown"]
        urls = [m["params"]["request"]["url"] for m in found if m.get("method") == "Network.requestWillBeSent"]
        return texts + [url for url in urls if not url.startswith(("http://127.0.0.1:", "data:", "about:"))]

    def end(self):
        self.process.terminate()
        self.process.wait()


def text_of(selector):
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((it) => it.textContent).join(' | ')"


BANNER = text_of("#banner")
POWER = text_of(".tile:nth-child(1) b")


def load_size(server):
    """Bytes of the page and of the first event."""
    page = urllib.request.urlopen(server.url).read()
    token = server.url.split("token=")[1]
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/events?range=24h")
    request.add_header("Authorization", f"Bearer {token}")
    event = b""
    with urllib.request.urlopen(request) as stream:
        while not event.endswith(b"\n\n"):
            event += stream.read1(1 << 16)
            event = event[: event.index(b"\n\n") + 2] if b"\n\n" in event else event
    return len(page), len(event)


def views(page):
    layout = (here / "look.js").read_text()
    wrong = []
    for theme in ["light", "dark"]:
        for width in [1280, 390]:
            page.look(theme, width)
            found = page.run(f"(() => {{ {layout}; return findFaults(document); }})()")
            dark = page.run("matchMedia('(prefers-color-scheme: dark)').matches")
            wrong += [f"{theme}-{width}: {fault}" for fault in found["wrong"]]
            if found["pictures"] != 5 or dark != (theme == "dark"):
                wrong.append(f"{theme}-{width}: {found['pictures']} pictures, dark: {dark}")
            page.screenshot(f"live-{theme}-{width}")
            page.screenshot(f"live-{theme}-{width}-first", whole=False)
    page.look("light", 1280)
    check(not wrong, "\n".join(wrong))
    unnamed = page.run(
        "[...document.querySelectorAll('svg[role=img]:not([aria-label]), th:not([scope]), button:empty')].length"
        " + [...document.querySelectorAll('input')].filter((it) => !it.labels.length).length"
    )
    check(unnamed == 0, f"{unnamed} elements have no name for a screen reader")


def figures_of_top(page, daemon):
    """Once nothing is open, the page, `top` and the list of accounts have the same digits."""
    models = "[...document.querySelectorAll('#energy-table tbody tr')].map((it) => [...it.cells].map((cell) => cell.textContent))"
    sums = sums_of_models(daemon)
    # Both are in joules below 10 kJ, rounded to a millijoule.
    joules = {model: f"{(sums[model] + 500) // 1000 / 1000:.3f}" for model in ["qwen3-8b", "llama-3.3-70b", "gemma-3-4b"]}

    # The page gets the last accounts with its next event.
    rows, deadline = page.run(models), time.monotonic() + TIMEOUT_S
    while not joules.items() <= {row[0]: row[1] for row in rows}.items():
        check(time.monotonic() < deadline, f"{joules} in spans, on the page {rows}")
        time.sleep(0.1)
        rows = page.run(models)
    top = subprocess.run([wattspan, "--socket", daemon.socket, "top", "--once"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    for model, expected in joules.items():
        check(re.search(rf"^{re.escape(model)} +{re.escape(expected)} ", top.stdout, re.M), f"{model}: {expected} J is not in:\n{top.stdout}")
    digits = [int(row[1].replace(".", "") or 0) for row in rows]
    check(sum(digits[:-1]) == digits[-1], f"the column does not add up: {rows}")


def sums_of_models(daemon):
    """The energy of all accounts by model, of the counted domains, once every span has its final account."""

    def final():
        spans = subprocess.run([wattspan, "--socket", daemon.socket, "spans", "--json", "-n", "1000"], capture_output=True, text=True)
        accounts = [json.loads(line) for line in spans.stdout.splitlines()]
        counts = VarlinkClient(daemon.socket, TIMEOUT_S).call("GetInfo")["spans"]
        return len(accounts) == counts["closed"] + counts["abandoned"] and accounts

    sums = {}
    for account in wait_until("the final accounts", final):
        model = account["attributes"].get("gen_ai.request.model")
        share = sum(of["share_uj"] for of in account["domains"] if of["domain"] in {"package-0", "dram-0", "gpu-0"})
        sums[model] = sums.get(model, 0) + share
    return sums


def main():
    daemon = Daemon()
    load = Load(daemon.socket)
    server = Server(daemon)
    page = Browser()
    try:
        page.look("light", 1280)
        page.call("Page.navigate", url=server.url)
        wait_until("the first figures", lambda: " W" in (page.run(POWER) or ""))
        check("token" not in page.run("location.href"), "the token stays in the URL")
        check(page.run("document.cookie") == "", "there is a cookie")
        hostile = VarlinkClient(daemon.socket, TIMEOUT_S)
        for ending in range(2):
            attributes = {"gen_ai.request.model": HOSTILE_MODEL}
            span = hostile.call("OpenSpan", name=HOSTILE_MODEL, attributes=attributes, process_share=False)["span"]
            time.sleep(0.3)
            # The second one stays open.
            ending or hostile.call("CloseSpan", span=span, wait_settled=True)
        seen = {page.run(POWER)}
        wait_until("figures that change", lambda: seen.add(page.run(POWER)) or len(seen) >= 3)
        wait_until("the hostile name", lambda: "<img src=x" in page.run(text_of("#energy-table td")))
        check(page.run("document.querySelectorAll('img').length") == 0 and "owned" not in page.run("document.title"), "a name was run")
        check("\u202e" not in page.run("document.documentElement.outerHTML"), "a hidden character reaches the page")
        wait_until("twenty seconds of history", lambda: page.run("requests.length") > 40)
        wait_until("tokens", lambda: " mJ" in page.run(text_of("#tokens .legend b")))
        sizes = load_size(server)
        check(sum(sizes) <= 1_000_000, f"{sizes} bytes at load")
        views(page)

        page.press("2")
        wait_until("the hour", lambda: "last hour" in page.run("document.querySelector('#domains svg').getAttribute('aria-label')"))
        check(page.run("document.querySelector('input[value=\"1h\"]').checked"), "the key changes no button")
        page.press("1")
        page.press("/")
        for letter in "gemma":
            page.press(letter)
        rows = page.run(text_of("#requests-table tbody td:nth-child(3)"))
        check(set(rows.split(" | ")) == {"gemma-3-4b"}, f"the search shows {rows}")
        page.press("Escape")
        page.press("p")
        paused = page.run(POWER + " + document.querySelector('#about').textContent")
        time.sleep(1.5)
        check(page.run(POWER + " + document.querySelector('#about').textContent") == paused, "the page moves while it is paused")
        page.press("p")
        page.call("Page.reload")
        wait_until("the figures after a reload", lambda: " W" in (page.run(POWER) or ""))
        check("token" not in page.run("location.href"), "the token is in the URL after a reload")
        # The reload asks for the page without the token, which is refused once.
        check([it for it in page.complaints() if "401" not in it] == [], "the page complains")

        load.stop()
        hostile.stream.close()
        wait_until("no open span", lambda: page.run(text_of("#open-title")) == "Open spans: 0")
        figures_of_top(page, daemon)

        daemon.kill()
        wait_until("the loss of the daemon", lambda: "daemon is unreachable since" in page.run(BANNER))
        page.screenshot("live-unreachable", whole=False)
        daemon.start()
        load = Load(daemon.socket)
        wait_until("the daemon's return", lambda: page.run(BANNER) == "")
        wait_until("requests of the new run", lambda: "qwen3-8b" in page.run(text_of("#energy-table td")))
        check("<img" not in page.run(text_of("#energy-table td")), "the totals are of the new run")

        server.kill()
        wait_until("the loss of the server", lambda: "wattspan serve is unreachable" in page.run(BANNER))
        server = Server(daemon, server.port)
        wait_until("the word of the new token", lambda: "no longer valid" in page.run(BANNER))
        page.call("Page.navigate", url=server.url)
        wait_until("the new page", lambda: " W" in (page.run(POWER) or "") and page.run(BANNER) == "")
        load.stop()
    finally:
        load.stop()
        page.end()
        server.kill()
        daemon.kill()
    print(f"the live page is whole, light and dark, wide and narrow; {sizes[0]} + {sizes[1]} bytes at load")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
main()
