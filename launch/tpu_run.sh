#!/usr/bin/env bash
# Runs a job on all hosts of a TPU at once; they find one another.
#   PROJECT=p ZONE=us-west4-a NAME=why launch/tpu_run.sh --config=configs/polyvore.py --config.job=all
# DETACH=1 leaves it running there, with run.log on each host. The same command goes on after a stop.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE NAME
[ $# -gt 0 ] || { echo "tpu_run.sh: give the flags of the job, as --config=configs/polyvore.py" >&2; exit 2; }

job=".venv/bin/python -m sane_jax.main $(quoted "$@")"
if [ "${DETACH:-}" = 1 ]; then
  job="nohup setsid $job > run.log 2>&1 < /dev/null &"
else
  job="set -o pipefail; $job 2>&1 | tee run.log"
fi
run gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all \
  --command="cd sane_jax; $job"
