#!/usr/bin/env bash
# Puts this checkout's last commit on every host of a TPU and installs it there.
#   PROJECT=p ZONE=us-west4-a NAME=why launch/tpu_setup.sh
# NFS=10.0.0.2:/share mounts a folder that all hosts share at ~/sane_jax/runs: a slice of several
# hosts needs one, for checkpoints and indexes are written by all of them.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE NAME

where=(--project="$PROJECT" --zone="$ZONE" --worker=all)
archive=$(mktemp -d)/sane_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix=sane_jax/ --output="$archive" HEAD

steps="set -e; tar xzf sane_jax.tar.gz; cd sane_jax"
if [ -n "${NFS:-}" ]; then
  steps+="; sudo apt-get install -y -qq nfs-common; mkdir -p runs"
  steps+="; mountpoint -q runs || sudo mount -t nfs $(quoted "$NFS") runs; sudo chmod 777 runs"
fi
# The hosts' own Python is older than this package takes.
steps+="; python3 -m pip install -q --user uv; python3 -m uv venv -q --python 3.12 --allow-existing .venv"
steps+="; python3 -m uv pip install -q --python .venv/bin/python -e '.[tpu,gcs]'"
steps+="; .venv/bin/python -c 'import jax; print(jax.local_devices())'"

run gcloud compute tpus tpu-vm scp "$archive" "$NAME:sane_jax.tar.gz" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --command="$steps"
