#!/bin/bash
# overnight on Slurm, on as many nodes as you like. Look at the nodes first, then train:
#
#   sbatch --time=5 launch/slurm.sh doctor --cluster --data /shared/data/edu --out /shared/runs/gpt2
#   sbatch launch/slurm.sh train gpt2-124m --data /shared/data/edu --out /shared/runs/gpt2
#
# Dataset and run folder must be on a file system that all nodes share. Ten minutes before the time limit the run writes
# a checkpoint, ends, and is queued again; likewise where a node fails. Stop it with `scancel JOB`: a checkpoint is
# written as well, if that takes less than the cluster's KillWait.
#
#SBATCH --job-name=overnight
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# to this script alone (B:), 600 seconds before the limit
#SBATCH --signal=B:USR1@600

set -uo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))     # another job on the same node takes another one
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=570  # seconds that torchrun gives the processes for their checkpoint

# one torchrun a node; it starts a process for each GPU, or as many as PROCESSES says
torchrun=(
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3
    --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID"
)

asked=
stop() {
    asked+=x
    scancel --signal=TERM "$SLURM_JOB_ID"  # to the torchruns; without --batch and --full it does not reach this script
}
trap stop USR1 TERM

srun --kill-on-bad-exit=0 "${torchrun[@]}" -m overnight "$@" &
run=$!

# a signal ends `wait`, not what it waits for: then wait again
waited=none
while [ "$waited" != "$asked" ]; do
    waited=$asked
    wait "$run"
    code=$?
done

# 75 (EX_TEMPFAIL): it goes on. A job that was cancelled is not RUNNING any more, and stays cancelled.
if [ "$code" -ne 0 ] && [ -n "$asked" ]; then
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 75
fi
exit "$code"
