# shellcheck shell=bash
# What train.sh, eval.sh and study.sh share. Sourced in the repository's root.

source slurm/site.sh

# A mistake of the user's, which another attempt would not mend.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# Give a script to sbatch: submit SCRIPT [sbatch options, each one word] [the script's arguments]
submit() {
  local script=$1 options=()
  shift
  while [[ ${1-} == -* ]]; do
    options+=("$1")
    shift
  done
  exec sbatch "${options[@]}" "$script" "$@"
}

# Sets `arguments` to the given ones as they are for this task of an array job: %a is the task's number, and of a list,
# KEY=@FIRST,SECOND,... or @FIRST,SECOND,..., it takes its own. Outside an array job they stay as they are.
take_own() {
  arguments=("$@")
  [[ ${SLURM_ARRAY_TASK_ID-} ]] || return 0
  local place values task=$SLURM_ARRAY_TASK_ID
  for place in "${!arguments[@]}"; do
    if [[ ${arguments[place]} =~ ^([^=]+=)?@(.+)$ ]]; then
      IFS=, read -ra values <<<"${BASH_REMATCH[2]}"
      ((task < ${#values[@]})) ||
        refuse "${arguments[place]} has nothing for task $task: submit with --array=0-$((${#values[@]} - 1))"
      arguments[place]=${BASH_REMATCH[1]}${values[task]}
    fi
    arguments[place]=${arguments[place]//%a/$task}
  done
}

# Ends the script as srun ends, and requeues the job where that is by 75: stopped and saved.
#   srun_and_requeue JOB [srun's options] COMMAND...
srun_and_requeue() {
  local job=$1 step='' signalled='' code=0
  shift
  # Slurm warns the ranks, not the script. Where it is signalled (--signal=B:..., some clusters' preemption), it must
  # not die, which would end the ranks, but tell them; srun hands SIGUSR1 on to all nodes.
  trap 'signalled=1; kill -USR1 $step 2>/dev/null || true' USR1 TERM
  srun "$@" &
  step=$!
  wait "$step" || code=$?
  while [[ $signalled ]]; do # a signal ends `wait` before srun has ended
    signalled=
    code=0
    wait "$step" || code=$?
  done
  # A job that is no longer running is being cancelled or requeued by Slurm already.
  if ((code == 75)) && [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then
    ((${SLURM_RESTART_COUNT:-0} < REQUEUES)) || {
      echo "error: saved, but requeued $SLURM_RESTART_COUNT times already (REQUEUES in slurm/site.sh); submit it again to go on" >&2
      exit 75
    }
    echo "job $job: saved; requeued" # before, as Slurm ends this script with it
    scontrol requeue "$job" || {
      echo "error: Slurm does not requeue this job; submit it again to go on" >&2
      exit 75
    }
  fi
  exit "$code"
}
