#!/usr/bin/env bash
# Trains on one node or many, and goes on after every interruption. docs/operations.md has the whole story.
#   sbatch [options] slurm/train.sh configs/X.yaml [dotted.key=value ...]
#   slurm/train.sh [options] configs/X.yaml [dotted.key=value ...]     the same, sent where slurm/site.sh says
#SBATCH --job-name=amvl
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail

# sbatch runs a copy of this file, which knows only where it was submitted.
if [[ ${SLURM_JOB_ID-} ]]; then cd "$SLURM_SUBMIT_DIR"; else cd "$(dirname "$0")/.."; fi
[[ -f slurm/common.sh ]] || { echo "error: $PWD is not the repository: submit from its root" >&2 && exit 2; }
source slurm/common.sh
(($#)) || refuse "which configuration? sbatch slurm/train.sh configs/X.yaml [dotted.key=value ...]"
[[ ${SLURM_JOB_ID-} ]] || submit slurm/train.sh "$@"

take_own "$@"
job=$SLURM_JOB_ID
if [[ ${SLURM_ARRAY_TASK_ID-} ]]; then
  [[ " $*" =~ " run.name="(@|[^ ]*%a) ]] || refuse "the tasks would share a run folder: add run.name=NAME-%a"
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # the id alone can mean the whole array
fi

site_environment
# Where rank 0 listens: by its address, for names of nodes need not resolve, and on a port of this job's own.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
ranks=${SLURM_GPUS_ON_NODE:-$RANKS_PER_NODE}
echo "job $job: $SLURM_JOB_NUM_NODES nodes with $ranks ranks each, rank 0 at $MASTER_ADDR:$MASTER_PORT," \
  "requeued ${SLURM_RESTART_COUNT:-0} times"

srun_and_requeue "$job" --wait=0 --kill-on-bad-exit=1 --cpu-bind=none slurm/node.sh "$ranks" "${arguments[@]}"
