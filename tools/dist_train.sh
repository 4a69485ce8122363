#!/usr/bin/env bash
# Train on several GPUs: dist_train.sh CONFIG GPUS [flags of train.py]
# Environment: NNODES NODE_RANK MASTER_ADDR PORT
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: ${0##*/} CONFIG GPUS [flags of train.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$tools/train.py" "$1" --launcher pytorch "${@:3}"
