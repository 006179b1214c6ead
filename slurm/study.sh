#!/usr/bin/env bash
# The study (docs/study.md) as jobs of one GPU, or one core, each; those of the array that have a result do nothing.
#   slurm/study.sh [options] [-- options of python -m benchmarks.study]     all of it: prepare, an array, the report
#   sbatch [options] --array=0-N slurm/study.sh [options of benchmarks.study]     the jobs 0 to N alone
#SBATCH --job-name=amvl-study
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --kill-on-invalid-dep=yes
set -euo pipefail

# sbatch runs a copy of this file, which knows only where it was submitted.
if [[ ${SLURM_JOB_ID-} ]]; then cd "$SLURM_SUBMIT_DIR"; else cd "$(dirname "$0")/.."; fi
[[ -f slurm/common.sh ]] || { echo "error: $PWD is not the repository: submit from its root" >&2 && exit 2; }
source slurm/common.sh

if [[ ! ${SLURM_JOB_ID-} ]]; then
  options=()
  while (($#)) && [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  site_environment
  numbers=$("${CONTAINER[@]}" python -m benchmarks.study list "${@:2}" | cut -d" " -f1 | paste -sd,)
  send() { sbatch --parsable "${options[@]}" "$@"; }
  first=$(STUDY=prepare send slurm/study.sh "${@:2}")
  array=$(send --array="$numbers%${STUDY_PARALLEL:-64}" --dependency="afterok:$first" slurm/study.sh "${@:2}")
  report=$(STUDY=report send --dependency="afterany:$array" slurm/study.sh "${@:2}")
  echo "prepare $first, jobs $array ($numbers), report $report"
  exit 0
fi

site_environment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# A job has one GPU, so that preparations run one by one.
case ${STUDY-job} in
  prepare) what=(prepare --parallel 1) ;;
  job) what=(job "$SLURM_ARRAY_TASK_ID") ;;
  *) what=("$STUDY") ;;
esac
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
srun_and_requeue "$job" --cpu-bind=none "${CONTAINER[@]}" python -m benchmarks.study "${what[@]}" "$@"
