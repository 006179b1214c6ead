#!/usr/bin/env bash
# Evaluates a run, on one node, also as soon as its training has ended well:
#   sbatch [options] slurm/eval.sh runs/NAME [options of eval/run_shards.py]
#   sbatch [options] slurm/eval.sh BENCHMARK runs/NAME [options of eval/run_BENCHMARK.py]
#       BENCHMARK: shards, blink, visual_puzzles or tsv
#   sbatch [options] slurm/eval.sh interventions [BENCHMARK] runs/NAME [options of eval/run_interventions.py]
#   sbatch [options] slurm/eval.sh diagnose runs/NAME [options of eval/diagnose.py]
#   sbatch --dependency=afterok:JOB slurm/eval.sh runs/NAME
#   slurm/eval.sh [options] runs/NAME [...]     the same, sent where slurm/site.sh says
#SBATCH --job-name=amvl-eval
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
set -euo pipefail

# sbatch runs a copy of this file, which knows only where it was submitted.
if [[ ${SLURM_JOB_ID-} ]]; then cd "$SLURM_SUBMIT_DIR"; else cd "$(dirname "$0")/.."; fi
[[ -f slurm/common.sh ]] || { echo "error: $PWD is not the repository: submit from its root" >&2 && exit 2; }
source slurm/common.sh
(($#)) || refuse "which run? sbatch slurm/eval.sh [interventions] [shards|blink|visual_puzzles|tsv] runs/NAME, or diagnose runs/NAME, [options]"
[[ ${SLURM_JOB_ID-} ]] || submit slurm/eval.sh "$@"

take_own "$@"
command=shards words=()
case ${arguments[0]} in
  shards | blink | visual_puzzles | tsv | interventions | diagnose)
    command=${arguments[0]}
    arguments=("${arguments[@]:1}")
    ;;
esac
case $command-${arguments[0]-} in
  interventions-shards | interventions-blink | interventions-visual_puzzles | interventions-tsv)
    words=("${arguments[0]}")
    arguments=("${arguments[@]:1}")
    ;;
esac
[[ ${arguments[0]-} && ${arguments[0]} != -* ]] || refuse "$command of which run? give runs/NAME after it"
site_environment
script=eval/run_$command.py
[[ $command != diagnose ]] || script=eval/diagnose.py
# One task: the evaluator starts a process for every GPU that Slurm gave the node.
exec "${CONTAINER[@]}" python "$script" "${words[@]}" --checkpoint "${arguments[@]}"
