#!/usr/bin/env bash
# Copies a run's folder from the first host of a TPU.
#   PROJECT=p ZONE=us-west4-a NAME=why launch/tpu_fetch.sh runs/polyvore results
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE NAME
[ $# = 2 ] || { echo "tpu_fetch.sh: give the folder there and the folder here, as runs/polyvore results" >&2; exit 2; }

run mkdir -p "$2"
run gcloud compute tpus tpu-vm scp --recurse "$NAME:sane_jax/$1" "$2" \
  --project="$PROJECT" --zone="$ZONE" --worker=0
