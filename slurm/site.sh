# shellcheck shell=bash disable=SC2034
# All that differs from site to site. train.sh and eval.sh read it when they submit themselves and again in the job.

# Where jobs go when the scripts submit themselves (`slurm/train.sh ...`); `sbatch slurm/train.sh ...` does not see it.
# Any of sbatch's input variables will do, see `man sbatch`.
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=project SBATCH_GPUS_PER_NODE=8 SBATCH_SIGNAL=USR1@600

# What python runs in, as a prefix: (apptainer exec --nv --bind /scratch /images/amvl.sif)
CONTAINER=()

# Ranks on a node where Slurm gave the job no GPUs; where it did, there is a rank for each.
RANKS_PER_NODE=${RANKS_PER_NODE:-1}

# A job that has been requeued so often, by itself or by Slurm, does not requeue itself again: one that never gets
# far must end some day.
REQUEUES=${REQUEUES:-50}

# Runs once in the job, before anything of it: modules, an environment. What it exports, all nodes have.
site_environment() {
  # module load cuda
  [[ ! -d .venv ]] || export PATH="$PWD/.venv/bin:$PATH"
}
