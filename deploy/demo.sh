#!/usr/bin/env bash
# From nothing to a trained custom speech model in one command: sets up, starts a private RabbitMQ and Postgres,
# trains a cardiology model on recordings shipped here, shows what it learned, and stops everything again.
#
#   bash deploy/demo.sh                    the whole story, once
#   bash deploy/demo.sh --keep             leaves everything running to play with, and says how to stop it
#   bash deploy/demo.sh --launcher local   where the trainer runs: local, ray or slurm
#   bash deploy/demo.sh --launcher ray --exchange storage   its node shares no folder with the worker, only S3
#   bash deploy/demo.sh --processes 2      how many processes train the model together, under torchrun
#
# WORKER_AMQP_URL with WORKER_DATABASE_URL name services of your own to use instead of private ones.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
extras=(trainer)
case " $* " in *" --keep "*) extras+=(api) ;; esac
case " $* " in *" ray "*) extras+=(ray) ;; esac
case " $* " in *" storage "*) extras+=(s3-tests) ;; esac
python=$(bash deploy/local/setup.sh "${extras[@]}")
PYTHONPATH=$root PYTHONUNBUFFERED=1 exec "$python" -B -m deploy.demo.demo "$@"
