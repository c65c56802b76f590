#!/usr/bin/env bash
# Break everything at once, thousands of times, and count.
#
#   bash tests/chaos.sh [--runs 500] [--faults 200] [--seed N] [--continue]
#
# One part is one seed and takes at most 20 minutes on two cores. --parts N plays several, one after the other;
# --continue adds to the parts played before. RESULT follows each part. --keep keeps every log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash deploy/local/setup.sh dev)
exec "$python" -m tests.chaos.suite "$@"
