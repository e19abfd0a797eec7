#!/usr/bin/env bash
# Asks for a TPU (one host or a pod slice) through a queued resource and waits until it is there.
#   PROJECT=p ZONE=us-west4-a NAME=why ACCELERATOR=v5litepod-8 RUNTIME=v2-alpha-tpuv5-lite launch/tpu_create.sh
# SPOT=1 asks for one that is cheaper and may be taken away; GIVE_UP=6h stops asking after as long.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE NAME ACCELERATOR RUNTIME

where=(--project="$PROJECT" --zone="$ZONE")
options=(--node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME")
[ "${SPOT:-}" != 1 ] || options+=(--spot)
[ -z "${GIVE_UP:-}" ] || options+=(--valid-until-duration="$GIVE_UP")
run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "${options[@]}"

state=(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" "--format=value(state.state)")
if [ "${DRY_RUN:-}" = 1 ]; then
  run "${state[@]}"
  exit 0
fi
while true; do
  now=$("${state[@]}")
  echo "$(date +%H:%M:%S) $NAME: $now"
  case "$now" in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING)
      echo "$NAME will not come; launch/tpu_delete.sh takes the request back" >&2
      exit 1
      ;;
  esac
  sleep "${EVERY_SECONDS:-30}"
done
