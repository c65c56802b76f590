#!/usr/bin/env bash
# Benchmarks. Services come from TEST_AMQP_URL, TEST_MANAGEMENT_URL and TEST_DATABASE_URL; without them a private
# pair starts and stops again. `training`, `loading` and `splits` need no services.
#
#   bash tests/bench.sh training [--seeds 1,2,3]                    the public recipe's seconds to its WER against ours
#   bash tests/bench.sh loading [--rounds 3]                        hours of audio a minute against three libraries
#   bash tests/bench.sh orchestration [--rounds 5] [--runs 3000]   ours against five queue libraries
#   bash tests/bench.sh scale [--sizes 1000,100000,1000000]      claim, heartbeat, list and sweep as tables grow
#   bash tests/bench.sh polling [--rounds 3]                        304 polls and list pages beside a plain endpoint
#   bash tests/bench.sh splits [--collections 1000]                 splits of random collections, judged by an oracle
#   bash tests/bench.sh memory                                      resident memory after 2,000 and 20,000 runs
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
what=${1:-}
case "$what" in
training | loading | splits | polling | orchestration | scale | memory) shift ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
python=$(bash deploy/local/setup.sh trainer api dev) || exit 1
export PYTHONPATH=$root PYTHONUNBUFFERED=1
case "$what" in
training | loading | splits) exec "$python" -m "tests.bench.$what" "$@" ;;
esac
exec "$python" -m tests.bench.main "$what" "$@"
