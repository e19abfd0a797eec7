#!/usr/bin/env bash
# Fills in gke_jobset.yaml and hands it to the cluster that kubectl is set to.
#   NAME=why IMAGE=... TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 HOSTS=4 CHIPS=4 CLAIM=runs \
#     launch/gke.sh --config=configs/polyvore.py --config.job=all
# SLICES=2 runs on as many slices. HOSTS: of a slice; CHIPS: of a host. DRY_RUN=1 prints the manifest.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need NAME IMAGE TPU TOPOLOGY HOSTS CHIPS CLAIM
[ $# -gt 0 ] || { echo "gke.sh: give the flags of the job, as --config=configs/polyvore.py" >&2; exit 2; }

SLICES=${SLICES:-1}
ARGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
text=$(< "$(dirname "$0")/gke_jobset.yaml")
for variable in NAME IMAGE TPU TOPOLOGY HOSTS CHIPS CLAIM SLICES; do
  value=${!variable}
  if ! [[ $value =~ ^[A-Za-z0-9._:/@-]+$ ]]; then
    echo "gke.sh: $variable is $value; letters, digits and . _ : / @ - are what it may hold" >&2
    exit 2
  fi
  text=${text//"\${$variable}"/"$value"}
done
text=${text//"\${ARGS}"/"$ARGS"}
if [ "${DRY_RUN:-}" = 1 ]; then
  echo "$text"
else
  kubectl apply -f - <<< "$text"
fi
