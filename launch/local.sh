#!/usr/bin/env bash
# N processes of one job on this machine: to try out what several machines would do.
#   launch/local.sh 2 --config=configs/synthetic.py --config.job=train_similarity
# DEVICES=4 gives each process as many CPU devices (1 by default); PYTHON=... runs another Python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "local.sh: give the number of processes and the flags of the job, as 2 --config=configs/synthetic.py" >&2
  exit 2
fi
count=$1 python=${PYTHON:-python}
shift
export JAX_NUM_CPU_DEVICES=${DEVICES:-1}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

pids=()
stop() { [ ${#pids[@]} = 0 ] || kill "-$1" "${pids[@]}" 2> /dev/null || true; }
trap 'stop TERM' TERM INT
for ((i = 0; i < count; i++)); do
  command=("$python" -m sane_jax.main "$@")
  [ "$count" = 1 ] || command+=(--coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$i")
  if [ "${DRY_RUN:-}" = 1 ]; then run "${command[@]}"; else "${command[@]}" & pids+=($!); fi
done

# The first that fails decides; the others have a minute to say why they end.
status=0
for _ in "${pids[@]}"; do
  code=0
  wait -n || code=$?
  if [ "$code" != 0 ] && [ "$status" = 0 ]; then
    status=$code
    (sleep 60 && stop KILL) &
    killer=$!
  fi
done
[ -z "${killer:-}" ] || kill "$killer" 2> /dev/null || true
exit "$status"
