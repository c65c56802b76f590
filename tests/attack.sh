#!/usr/bin/env bash
# One hostile customer with every right it may have, against another one, and what of it is written down.
#
#   bash tests/attack.sh [--minutes 20] [--seed N] [--continue] [--tree CHECKOUT] [--only KIND ...]
#
# Starts a private RabbitMQ and Postgres, an API and two workers. Slices of quiet, honest load and attack alternate.
# RESULT follows each part and is cumulative; --continue adds to what earlier invocations counted, and makes first the
# kinds of attack that they had no time for. --tree attacks another checkout with this suite and this environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash deploy/local/setup.sh trainer api dev)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
exec "$python" -m tests.attack.suite "$@"
