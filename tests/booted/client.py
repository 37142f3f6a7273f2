"""A client of the daemon's socket inside the booted machine, for test.sh; prints the replies.

    client.py call METHOD [PARAMETERS]...      calls on one connection; one reply per line
    client.py hold SECONDS                     opens a span and holds it; prints how the connection ended
    client.py await-close                      closes a span, waits for the final account, prints the reply
    client.py besiege SECONDS                  connects repeatedly; prints how many connections were accepted and refused
    client.py descriptors                      sends a file descriptor; prints the reply and whether the connection was closed
    client.py counters SYSFS                   reads each counter of the power PMU from the kernel, not from the daemon;
                                               prints its kind and whether it moves
    client.py metrics SOCKET                   prints the answer of the exporter for Prometheus on this Unix socket
    client.py collect PORT                     takes the requests of OTLP on this port of the machine until one of each kind came;
                                               prints each request's path and number of spans or metrics
"""

import ctypes, http.server, json, os, pathlib, socket, struct, sys, time

PATH = os.environ.get("WATTSPAN_SOCKET", "/run/wattspan/wattspan.sock")


def connect():
    meter = socket.socket(socket.AF_UNIX)
    meter.connect(PATH)
    return meter


def message(method, parameters):
    return json.dumps({"method": "org.wattspan.Meter." + method, "parameters": parameters}).encode() + b"\0"


def answer(meter):
    """The next reply, or None if the daemon closed the connection."""
    said = b""
    while not said.endswith(b"\0"):
        part = meter.recv(65536)
        if not part:
            return None
        said += part
    return json.loads(said[:-1])


def call(meter, method, **parameters):
    meter.sendall(message(method, parameters))
    return answer(meter)


KINDS = {"cores": "core", "pkg": "package", "ram": "dram", "gpu": "uncore", "psys": "psys"}


def cpus(text):
    """Parses a CPU list of sysfs: 0,4-6"""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def opened(kind, config, cpu):
    """Opens a counter of this CPU; None if the kernel refuses it."""
    attributes = struct.pack("=IIQ", kind, 112, config).ljust(112, b"\0")
    system_call = {"x86_64": 298, "aarch64": 241}[os.uname().machine]
    every_process, no_group, close_on_exec = -1, -1, 8
    counter = ctypes.CDLL(None).syscall(system_call, attributes, every_process, cpu, no_group, close_on_exec)
    return None if counter < 0 else counter


def counters(sysfs):
    """Prints kind and liveness of each counter, from two reads with work between them."""
    power = sysfs / "bus/event_source/devices/power"
    found = []
    for event in sorted(power.glob("events/energy-*")) if power.is_dir() else []:
        if event.suffix:
            continue
        config = int(event.read_text().strip().removeprefix("event="), 16)
        for cpu in cpus((power / "cpumask").read_text()):
            counter = opened(int((power / "type").read_text()), config, cpu)
            if counter is not None:
                found.append((KINDS[event.name.removeprefix("energy-")], counter))
    before = [os.read(counter, 8) for _, counter in found]
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pass
    moves = [os.read(counter, 8) != was for (_, counter), was in zip(found, before)]
    return sorted([kind, "live" if moved else "stuck"] for (kind, _), moved in zip(found, moves))


def metrics(path):
    """The head and the text of an answer."""
    exporter = socket.socket(socket.AF_UNIX)
    exporter.settimeout(20)
    exporter.connect(path)
    exporter.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    said = b""
    while part := exporter.recv(65536):
        said += part
    return said.decode()


def collect(port):
    """Answers as a collector does that accepts everything."""
    came = {}

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            counts = [
                len(scope.get("spans") or scope.get("metrics"))
                for kind in ("resourceSpans", "resourceMetrics")
                for resource in body.get(kind, [])
                for scope in resource["scopeSpans" if kind == "resourceSpans" else "scopeMetrics"]
            ]
            came[self.path] = sum(counts)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", port), Collector) as collector:
        print("listens", flush=True)
        while set(came) != {"/v1/traces", "/v1/metrics"}:
            collector.handle_request()
    print(json.dumps(came))


verb, words = sys.argv[1], sys.argv[2:]
if verb == "call":
    meter = connect()
    while words:
        method = words.pop(0)
        parameters = json.loads(words.pop(0)) if words and words[0].startswith("{") else {}
        print(json.dumps(call(meter, method, **parameters)), flush=True)
elif verb == "hold":
    meter = connect()
    print(json.dumps(call(meter, "OpenSpan", span="held")), flush=True)
    meter.settimeout(float(words[0]))
    try:
        print("hung up" if meter.recv(1) == b"" else "received data")
    except TimeoutError:
        print("still connected")
elif verb == "await-close":
    meter = connect()
    call(meter, "OpenSpan", span="awaited")
    time.sleep(0.1)
    meter.sendall(message("CloseSpan", {"span": "awaited", "wait_settled": True}))
    # The daemon has read that once the span is no longer open.
    other = connect()
    while call(other, "GetSpan", span="awaited")["parameters"]["account"]["state"] == "open":
        time.sleep(0.02)
    other.close()
    print("waits", flush=True)
    print(json.dumps(answer(meter)))
elif verb == "besiege":
    until, came, refused = time.monotonic() + float(words[0]), 0, 0
    while time.monotonic() < until:
        try:
            if call(connect(), "GetInfo"):
                came += 1
        except ConnectionRefusedError:
            refused += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        time.sleep(0.002)
    print(json.dumps({"came": came, "refused": refused}))
elif verb == "counters":
    print(counters(pathlib.Path(words[0])))
elif verb == "metrics":
    print(metrics(words[0]))
elif verb == "collect":
    collect(int(words[0]))
elif verb == "descriptors":
    meter = connect()
    socket.send_fds(meter, [message("GetInfo", {})], [0])
    print(json.dumps(answer(meter)))
    print("hung up" if answer(meter) is None else "still connected")
