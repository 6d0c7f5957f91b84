#!/usr/bin/env bash
# sbatch cluster/slurm.sh [MODULE ARGUMENTS...]     at the root of the repository, on a disk that all nodes share
#
# A module of jobs/ with its arguments; by default the whole night of yesterday, jobs.nightly jobs/night.toml --date DAY.
# A job that was preempted, requeued or ran out of time continues when it runs again. Every GPU of the allocation gets a
# replica. The dashboard listens on the loopback of the first node: ssh -L 8265:127.0.0.1:8265 NODE
# Credentials for S3 and the hub are read from the files in $HOME that their own tools wrote.
#SBATCH --job-name=armo-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=07:00:00
#SBATCH --requeue
# --exclusive, because symmetric-run ends every Ray process of the user on a node when it is done
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit with sbatch}"
if [ $# -eq 0 ]; then
    day=.night-${SLURM_JOB_ID:?} # a job that is requeued after midnight goes on with the same night
    [ -s "$day" ] || date -ud yesterday +%F >"$day"
    set -- jobs.nightly jobs/night.toml --date "$(cat "$day")"
fi

[ -x .venv/bin/python ] || python3 -m venv .venv
PATH=$PWD/.venv/bin:$PATH
[ -x .venv/bin/armo-ray ] || python -m pip install -q --disable-pip-version-check -c cluster/constraints.txt -e .

export RAY_AUTH_MODE=token RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
(umask 077 && ray get-auth-token --generate >/dev/null) # writes ~/.ray/auth_token if there is none; all nodes read it

address=$(hostname -I | cut -d' ' -f1):6379 # this is the first node; its name may resolve to its loopback
started=$(mktemp)
trap 'rm -f "$started"' EXIT

# symmetric-run exits with 0 if Ray did not start, so the command records that it was reached
# shellcheck disable=SC2016
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --dashboard-host=127.0.0.1 -- \
    bash -c 'echo yes >"$0" && exec "$@"' "$started" env RAY_ADDRESS="$address" \
    python -m "$@"
[ -s "$started" ] || { echo "Ray did not start: see the messages above" >&2; exit 1; }
