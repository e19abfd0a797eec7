#!/usr/bin/env bash
# Deletes a TPU and its request; from then on it costs nothing. What was not fetched is gone.
#   PROJECT=p ZONE=us-west4-a NAME=why launch/tpu_delete.sh
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE NAME

run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --force --quiet
