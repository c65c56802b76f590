"""Schemathesis over the exported OpenAPI against a served API, all checks on.

    pip install schemathesis && python -m tests.api.fuzz [--examples 110] [--max-time 600]

Starts its own server (TEST_DATABASE_URL names the database server). The stream of changes never ends, so it is left to
its own test. Prints one last line `RESULT {…}`; exits 1 where a check failed or fewer than 5,000 requests were sent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OPENAPI = HERE.parents[1] / "schemas" / "openapi.json"
LEAST = 5_000


def fuzz(program: str, ready: dict[str, str], options: argparse.Namespace) -> tuple[int, str]:
    """Exit code and output of Schemathesis."""
    command = [
        program, "--config-file", str(HERE / "schemathesis.toml"), "run", str(OPENAPI), "--url", ready["url"],
        "-H", f"Authorization: Bearer {ready['key']}", "--exclude-path-regex", "changes$", "--checks", "all",
        "--phases", options.phases, "--max-examples", str(options.examples), "--workers", str(options.workers), "--request-timeout", "30", "--continue-on-failure",
        "--warnings", "off", "--no-color", "--generation-database", "none",
    ]  # fmt: skip
    if options.max_time:
        command += ["--max-time", str(options.max_time)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=110, help="for each operation and phase")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--workers", type=int, default=1, help="Hypothesis is not safe in threads on Python 3.11")
    parser.add_argument("--max-time", type=int, help="seconds; fuzzing goes on until they are spent")
    options = parser.parse_args()
    program = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")
    if program is None:
        print("schemathesis is not installed: pip install schemathesis", file=sys.stderr)
        return 2
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.api.serve_for_tests"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        code, output = fuzz(program, json.loads(server.stdout.readline()), options)
    finally:
        server.stdin.close()
        server.wait()
    counted = re.search(r"([\d,]+) generated", output)
    cases = int(counted.group(1).replace(",", "")) if counted else 0
    print(output[-6_000:] if code else output[output.rfind("SUMMARY") :])
    print("RESULT " + json.dumps({"bench": "schemathesis", "cases": cases, "clean": code == 0}))
    return 0 if code == 0 and cases >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
