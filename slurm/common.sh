# shellcheck shell=bash
# What train.sh and eval.sh share. Sourced in the repository's root.

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
