#!/usr/bin/env bash
# Compress by several processes: dist_compress.sh CONFIG CHECKPOINT PROCESSES [flags of compress.py]
# Environment: NNODES NODE_RANK MASTER_ADDR PORT
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: ${0##*/} CONFIG CHECKPOINT PROCESSES [flags of compress.py]" >&2
    exit 2
fi
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$tools/compress.py" "$1" "$2" --launcher pytorch "${@:4}"
