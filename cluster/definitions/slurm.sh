#!/usr/bin/env bash
# A lodisc command on a Ray cluster of the nodes that SLURM lends, all of which train. In a folder that the nodes share,
# with the environment active that has this package:
#
#   sbatch slurm.sh doctor --storage runs
#   sbatch slurm.sh pretrain --config paper-vit-b16 --data.images images --name first --compute.workers 8
#   squeue --me; tail -f lodisc-JOB.out; scancel JOB
#
# Two minutes before its time is up the run saves a checkpoint, and the job queues itself again and goes on with
# --resume, which needs a --name. A job that SLURM requeues, because a node was lost, goes on in the same way; if that
# was before its run had begun, the run is not there to be resumed, and the job ends and says so: submit it again.
#
# CHANGE the next lines; all others of SLURM's options, as --account or --partition, can be given to sbatch.
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#
# As they are: one Ray on each node, which has the node for itself, so that no other Ray takes its ports.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --job-name=lodisc
#SBATCH --output=lodisc-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch slurm.sh COMMAND [options of the command]" >&2; exit 2; }

nodes=$SLURM_JOB_NUM_NODES
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# This script runs on that node. CHANGE where the nodes' fast network is not the first.
read -r ip _ < <(hostname -I)
address=$ip:6379

# Other users are on the same network: only who can read this file may use the cluster.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/slurm-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
mkdir -p "$HOME/.ray"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2>/dev/null || true' EXIT

# start COUNT WHERE [options of ray start]
start() {
    srun --nodes="$1" --ntasks="$1" "$2" --cpus-per-task="$SLURM_CPUS_PER_TASK" ray start --block \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "${@:3}" &
}

count_nodes() {
    ray status --address="$address" 2>/dev/null |
        awk '/^Active:/ {on = 1} /^Pending:/ {on = 0} on && $1 ~ /^[0-9]+$/ {sum += $1} END {print sum + 0}'
}

wait_for_nodes() {
    until [ "$(count_nodes)" -ge "$1" ]; do
        if [ "$SECONDS" -gt 600 ] || [ -z "$(jobs -pr)" ]; then
            echo "slurm.sh: Ray did not come up on $1 of $nodes nodes" >&2
            exit 1
        fi
        sleep 3
    done
}

start 1 --nodelist="$head" --head --node-ip-address="$ip" --port=6379 --dashboard-host=127.0.0.1
wait_for_nodes 1
if [ "$nodes" -gt 1 ]; then
    start $((nodes - 1)) --exclude="$head" --address="$address"
    wait_for_nodes "$nodes"
fi

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    case $1 in
        pretrain | tune | finetune) set -- "$@" --resume ;;
    esac
fi
lodisc "$@" --address "$address" &
driver=$!
trap 'kill -TERM "$driver"' TERM
# The signal ends `wait`, but not yet the driver, which first saves a checkpoint.
while kill -0 "$driver" 2>/dev/null; do
    wait "$driver" || true
done
status=0
wait "$driver" || status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
