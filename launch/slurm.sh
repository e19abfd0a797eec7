#!/usr/bin/env bash
# One process a GPU on any number of nodes; they find one another.
#   VENV=$HOME/venv sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 launch/slurm.sh --config=configs/polyvore.py
# The workdir and the data lie on a file system that all nodes share.
#SBATCH --job-name=sane_jax
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
# sbatch runs a copy from elsewhere: what is used lies where it was submitted.
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/common.sh
source launch/common.sh
need VENV
[ $# -gt 0 ] || { echo "slurm.sh: give the flags of the job, as --config=configs/polyvore.py" >&2; exit 2; }

# Two minutes before the time is up every process gets SIGTERM: it saves and leaves.
run srun --kill-on-bad-exit=1 "$VENV/bin/python" -m sane_jax.main "$@"
