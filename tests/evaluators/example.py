"""Prints the commands of the section "Evaluators" of docs/ipw.md as a script, for check.sh.

    example.py DOCUMENT URL DIRECTORY

The only changes: the model's server is at URL instead of port 8000, the proxy at a free port instead of 8088, and the
directories logs, results and runs are below DIRECTORY. Lines that install something are left out.
"""

import re
import socket
import sys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    document, url, directory = sys.argv[1:]
    text = open(document, encoding="utf-8").read()
    section = re.search(r"^## Evaluators\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    if section is None:
        sys.exit(f"{document} has no section Evaluators")
    blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    script = "".join(blocks)
    for program in ("inspect eval", "lm_eval run", "import --inspect", "import --lm-eval", "ipw report", "ipw compare"):
        if program not in script:
            sys.exit(f"the section Evaluators of {document} has no command with {program}")
    proxy = f"127.0.0.1:{free_port()}"
    script = re.sub(r"^pip install .*\n", "", script, flags=re.MULTILINE)
    script = script.replace("http://127.0.0.1:8000", url).replace("127.0.0.1:8088", proxy)
    script = re.sub(r"\b(logs|results|runs)\b(?=[/ \n])", rf"{directory}/\1", script)
    # The proxy must listen before the evaluation begins.
    wait = f"until (exec 3<>/dev/tcp/{proxy.replace(':', '/')}) 2>/dev/null; do sleep 0.1; done\n"
    print("trap 'kill $(jobs -p) || true' EXIT\nset -x\n" + re.sub(r"( &\n)", rf"\1{wait}", script))


main()
