#!/usr/bin/env bash
# Starts the ranks of one node and ends as they do. train.sh has srun run it once on every node: node.sh RANKS, then
# the trainer's arguments; MASTER_ADDR and MASTER_PORT are set.
#
# Not DeepSpeed's own launcher of a node: on SIGTERM that kills ranks which have not saved within 30 seconds and forgets
# their exit code, and it numbers GPUs from 0 where Slurm gave others.
set -euo pipefail

# Slurm signals all processes of the job. These two are for the ranks, which save and leave.
trap '' USR1 TERM

source slurm/site.sh
count=$1
shift
if [[ ${SLURM_GPUS_ON_NODE:-$count} != "$count" ]]; then
  echo "error: $SLURMD_NODENAME has $SLURM_GPUS_ON_NODE GPUs, the first node $count: submit with --gpus-per-node" >&2
  exit 2
fi

threads=$((SLURM_CPUS_ON_NODE / count))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export WORLD_SIZE=$((SLURM_NNODES * count)) LOCAL_SIZE=$count
ranks=()
for ((rank = 0; rank < count; rank++)); do
  RANK=$((SLURM_NODEID * count + rank)) LOCAL_RANK=$rank "${CONTAINER[@]}" python -u trainer/main.py "$@" &
  ranks+=($!)
done

stopped=0
for _ in "${ranks[@]}"; do
  code=0
  wait -n || code=$?
  case $code in
    0) ;;
    75) stopped=1 ;;
    *)
      # The others hear of it and end, rank 0 after it has told MLflow; one that cannot is killed.
      for _ in {1..15}; do
        kill -0 "${ranks[@]}" 2>/dev/null || break
        sleep 1
      done
      kill -KILL "${ranks[@]}" 2>/dev/null || true
      exit "$code"
      ;;
  esac
done

# All ranks of all nodes stop together. srun kills the other nodes as soon as one reports a failure, so only the first
# reports this one, and leaves them the time to end.
if ((stopped && SLURM_NODEID == 0)); then
  ((SLURM_NNODES == 1)) || sleep 5
  exit 75
fi
