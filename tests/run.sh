#!/usr/bin/env bash
# Every check, from nothing: sets up what is missing, starts a private RabbitMQ and Postgres, runs the linters,
# the type checker and the tests, stops everything, and looks whether anything was left running.
#
#   bash tests/run.sh                        what a change must pass
#   bash tests/run.sh --all                  and what needs Chromium, Ray, Slurm, Prometheus or an S3 server, a short
#                                            attack, the long search for inputs that make a parser slow, the list of
#                                            components and a scan for known vulnerabilities
#   bash tests/run.sh [--all] tests/unit -k splits    other words go to pytest (no linters then)
#
# TEST_AMQP_URL, TEST_MANAGEMENT_URL and TEST_DATABASE_URL (a superuser's) name running services to use instead;
# so do WORKER_AMQP_URL and WORKER_DATABASE_URL. SPEECH_WORKER_KEEP=1 keeps the logs of a run.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
began=$SECONDS

extras=(trainer api otel dev)
marked="not (attack or chaos or demo or browser or ray or slurm or prometheus or s3 or search or supply_chain)"
if [ "${1:-}" = --all ]; then
    shift
    extras+=(ray s3-tests supply-chain)
    marked=""
fi

python=$(bash deploy/local/setup.sh "${extras[@]}") || exit 1
export PYTHONPATH=$root PYTHONUNBUFFERED=1

if [ -z "$marked" ]; then
    "$python" -m deploy.local.optional || exit 1
fi

# -- a folder and services for this run --------------------------------------------------------------------
folder=$(mktemp -d "${TMPDIR:-/tmp}/speech-tests-XXXXXX") || exit 1
chmod 711 "$folder" # where Postgres must run as another user, that user has to reach its own folder in here
mkdir "$folder/tmp"
export TMPDIR=$folder/tmp
services=

stop_services() {
    [ -n "$services" ] || return 0
    kill -TERM "$services" 2>/dev/null
    wait "$services" 2>/dev/null
    services=
}

finish() {
    stop_services
    [ -n "${SPEECH_WORKER_KEEP:-}" ] && echo "kept: $folder" || rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

if [ -n "${WORKER_AMQP_URL:-}" ] && [ -n "${WORKER_DATABASE_URL:-}" ]; then
    : "${TEST_AMQP_URL:=$WORKER_AMQP_URL}" "${TEST_DATABASE_URL:=$WORKER_DATABASE_URL}"
    # The management API's usual place, with the broker's own user.
    : "${TEST_MANAGEMENT_URL:=$("$python" -c 'import sys, urllib.parse as u
a = u.urlsplit(sys.argv[1]); print(f"http://{a.username}:{a.password}@{a.hostname}:15672")' "$WORKER_AMQP_URL")}"
    export TEST_AMQP_URL TEST_MANAGEMENT_URL TEST_DATABASE_URL
fi
for name in $(compgen -e WORKER_); do unset "$name"; done # a developer's settings are no part of a test

if [ -z "${TEST_AMQP_URL:-}" ] || [ -z "${TEST_MANAGEMENT_URL:-}" ] || [ -z "${TEST_DATABASE_URL:-}" ]; then
    echo "== starting RabbitMQ and Postgres in $folder"
    "$python" -m deploy.local.services run --folder "$folder/services" --owner $$ >"$folder/addresses.json" &
    services=$!
fi

# -- checks ------------------------------------------------------------------------------------------------
verdicts=()
failed=0
check() {
    local name=$1 from=$SECONDS
    shift
    echo "== $name"
    if "$@"; then
        verdicts+=("$name: passed ($((SECONDS - from)) s)")
    else
        verdicts+=("$name: FAILED ($((SECONDS - from)) s)")
        failed=1
    fi
}

wait_for_services() {
    [ -n "$services" ] || return 0
    until [ -s "$folder/addresses.json" ]; do
        kill -0 "$services" 2>/dev/null || { echo "the services did not start" >&2; return 1; }
        sleep 0.2
    done
    eval "$("$python" - "$folder/addresses.json" <<'PY'
import json, shlex, sys
found = json.load(open(sys.argv[1]))
for name, key in (("AMQP", "amqp_url"), ("MANAGEMENT", "management_url"), ("DATABASE", "database_url")):
    print(f"export TEST_{name}_URL={shlex.quote(found[key])}")
print("echo '   Postgres runs: " + found["postgres_road"] + "'")
PY
)"
}

# What this run started names its folder on its command line or in its environment.
nothing_left() {
    local left
    left=$("$python" - "$folder" $$ <<'PY'
import os, pathlib, sys
mark, shell = sys.argv[1].encode(), int(sys.argv[2])
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) in {shell, os.getpid(), os.getppid()}:
        continue
    try:
        command = (process / "cmdline").read_bytes()
        if command and (mark in command or mark in (process / "environ").read_bytes()):
            print(process.name, command.replace(b"\0", b" ").decode(errors="replace")[:120])
    except OSError:
        continue
PY
)
    [ -z "$left" ] || { printf 'still running:\n%s\n' "$left"; return 1; }
}

if [ $# -eq 0 ]; then
    check "ruff check" "$python" -m ruff check .
    check "ruff format" "$python" -m ruff format --check .
    check "mypy --strict" "$python" -m mypy -p worker -p schemas -p deploy.local
    check "import contracts" "$(dirname "$python")/lint-imports"
    check "declared dependencies" "$python" -m deptry .
fi
# A database of vulnerabilities that cannot be reached is no failure of a change, and no clean scan either: it is said.
scan() {
    local from=$SECONDS code=0
    echo "== known vulnerabilities"
    "$python" -m deploy.local.supply_chain scan || code=$?
    case $code in
    0) verdicts+=("known vulnerabilities: none ($((SECONDS - from)) s)") ;;
    3) verdicts+=("known vulnerabilities: NOT SCANNED, see above ($((SECONDS - from)) s)") ;;
    *) verdicts+=("known vulnerabilities: FAILED ($((SECONDS - from)) s)") failed=1 ;;
    esac
}
if [ -z "$marked" ] && [ $# -eq 0 ]; then
    check "list of components (SBOM)" "$python" -m deploy.local.supply_chain sbom "$folder/sbom.json"
    scan
fi

# A kill -9 of this script must end the tests too (the services watch it by themselves).
leashed=()
setpriv --pdeathsig KILL true 2>/dev/null && leashed=(setpriv --pdeathsig KILL)
if wait_for_services; then
    # Most of a test's time is waiting, so one file more at a time than there are processors.
    side_by_side=()
    [ $# -eq 0 ] && side_by_side=(-n $(($(nproc) + 1)) --dist loadfile)
    check "pytest" "${leashed[@]}" "$python" -m pytest "${side_by_side[@]}" ${marked:+-m "$marked"} "${@:-tests}"
else
    verdicts+=("pytest: FAILED (no services)")
    failed=1
fi
stop_services
check "nothing left running" nothing_left

echo
printf '%s\n' "${verdicts[@]}"
echo "tests/run.sh: $([ $failed -eq 0 ] && echo passed || echo FAILED) in $((SECONDS - began)) s"
exit $failed
