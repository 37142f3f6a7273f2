"""A collector for tests: decodes OTLP/HTTP with the classes of the OpenTelemetry Python SDK, JSON and protobuf alike, and
appends each request to a file, fsynced before its answer. A span with a field that the protocol does not know is an error.

    collector.py PORT FILE
"""

import base64
import gzip
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}
IDS = ("traceId", "spanId", "parentSpanId")


def with_base64_ids(value):
    """OTLP's JSON has hexadecimal IDs, protobuf's JSON mapping has base64."""
    if isinstance(value, list):
        return [with_base64_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(each)).decode() if key in IDS else with_base64_ids(each)
        for key, each in value.items()
    }


def attributes(of):
    def plain(value):
        return getattr(value, value.WhichOneof("value"))

    found = {each.key: plain(each.value) for each in of.attributes}
    assert len(found) == len(of.attributes), "an attribute stands twice"
    return found


def spans(request):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                assert len(span.trace_id) == 16 and len(span.span_id) == 8, span
                yield {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_id": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "start_ns": span.start_time_unix_nano,
                    "end_ns": span.end_time_unix_nano,
                    "events": [event.name for event in span.events],
                    "attributes": attributes(span),
                    "resource": attributes(resource.resource),
                }


def points(request):
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                assert kind == "gauge" or (data.is_monotonic and data.aggregation_temporality == 2), metric
                for point in data.data_points:
                    yield {
                        "metric": metric.name,
                        "unit": metric.unit,
                        "kind": kind,
                        "value": point.as_double,
                        "start_ns": point.start_time_unix_nano,
                        "at_ns": point.time_unix_nano,
                        "attributes": attributes(point),
                        "resource": attributes(resource.resource),
                    }


def decode(path, content_type, body):
    request = KINDS[path]()
    if content_type == "application/x-protobuf":
        request.ParseFromString(body)
    else:
        assert content_type == "application/json", content_type
        json_format.ParseDict(with_base64_ids(json.loads(body)), request)
    return list(spans(request) if path == "/v1/traces" else points(request))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            # The specification asks every collector for it.
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            rows = decode(self.path, self.headers["Content-Type"], body)
        except Exception as error:
            self.answer(400, {"message": str(error)})
            print(f"cannot decode: {error}", file=sys.stderr, flush=True)
            return
        with self.server.lock:
            os.write(self.server.file, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            os.fsync(self.server.file)
        self.answer(200, {})

    def answer(self, status, value):
        # In the encoding of the request; an empty message is empty in protobuf.
        is_protobuf = status == 200 and self.headers["Content-Type"] == "application/x-protobuf"
        body = b"" if is_protobuf else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf" if is_protobuf else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.lock = Lock()
    server.file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    server.serve_forever()
