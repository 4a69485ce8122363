#!/usr/bin/env bash
# Compress under Slurm: slurm_compress.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags of compress.py]
# Environment: PROCESSES PROCESSES_PER_NODE CPUS_PER_TASK SRUN_ARGS (split at blanks; for --device cuda: --gres=gpu:N)
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: ${0##*/} PARTITION JOB_NAME CONFIG CHECKPOINT [flags of compress.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -ra srun_args <<<"${SRUN_ARGS:-}"

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" exec srun \
    --partition="$1" \
    --job-name="$2" \
    --ntasks="${PROCESSES:-8}" \
    --ntasks-per-node="${PROCESSES_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-4}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    python -u "$tools/compress.py" "$3" "$4" --launcher slurm --threads "${CPUS_PER_TASK:-4}" "${@:5}"
