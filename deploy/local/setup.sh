#!/usr/bin/env bash
# Everything a bare machine needs, without root: a virtual environment with the chosen extras of pyproject.toml,
# RabbitMQ and Postgres. Progress goes to standard error; standard output is one line, the Python to use:
#
#   python=$(bash deploy/local/setup.sh trainer)          # what the demo needs
#   python=$(bash deploy/local/setup.sh trainer api dev)  # what the tests need
#
# The project itself is never installed: run `PYTHONPATH=<this clone> "$python" -m worker …`.
# Downloads are kept in $SPEECH_WORKER_CACHE (else ~/.cache/speech-training-worker) and shared by all clones.
# Settings: SPEECH_WORKER_PYTHON (interpreter), SPEECH_WORKER_TORCH (another build, as pip takes it),
# WORKER_AMQP_URL with WORKER_DATABASE_URL (services of your own instead of private ones).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

find_python() {
    local candidate
    for candidate in ${SPEECH_WORKER_PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
        # Run it rather than trust its name: a version manager's shim may point at nothing.
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    echo "set-up: no Python 3.11 to 3.14 found${SPEECH_WORKER_PYTHON:+ at $SPEECH_WORKER_PYTHON}." \
        "What to do: install python3.11 or newer, or name one in SPEECH_WORKER_PYTHON." >&2
    return 1
}

python=$(find_python)
cd "$root"
PYTHONPATH=$root exec "$python" -B -m deploy.local.install "$@"
