#!/usr/bin/env bash
# Train under Slurm: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]
# Environment: GPUS GPUS_PER_NODE CPUS_PER_TASK SRUN_ARGS (split at blanks)
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: ${0##*/} PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -ra srun_args <<<"${SRUN_ARGS:-}"

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" exec srun \
    --partition="$1" \
    --job-name="$2" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    python -u "$tools/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
