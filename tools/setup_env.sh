#!/usr/bin/env bash
# Makes .venv ready: torch, mmcv with its ops, mmengine, mmdet, mmriem. Safe to run again.
#
#   PYTHON  interpreter to build the environment with (default: python3.11, else python3)
#   VENV    where the environment goes (default: .venv)
#   TORCH   what to install as torch (default: the pin in requirements.txt)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
MMCV=2.1.0

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] FAILED: %s\n' "$1" >&2
    printf '[setup] What to do: %s\n' "$2" >&2
    exit 1
}
run() { # run LOG COMMAND...: quiet unless it fails, then the last lines of the log
    local log="$VENV/$1.log"
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        return 1
    fi
}

stamp="$VENV/.ready-$(cat requirements.txt setup.py $(find mmriem -name "*.[ch]" | sort) tools/setup_env.sh | sha256sum | cut -c1-16)"
if [ -e "$stamp" ]; then
    say "$VENV is ready"
    exit 0
fi

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || fail "no python3 found" "install Python 3.11 (Debian: apt-get install python3.11 python3.11-venv python3.11-dev)"
"$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' ||
    fail "$("$python" --version) is not supported, the pinned versions need 3.9 to 3.12" "call: make setup PYTHON=python3.11"
for tool in gcc g++; do
    command -v "$tool" >/dev/null ||
        fail "$tool not found, and mmcv's ops are compiled here" "install a C++ compiler (Debian: apt-get install build-essential; Fedora: dnf install gcc-c++)"
done

if [ ! -x "$VENV/bin/python" ]; then
    say "creating $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" ||
        fail "the virtual environment could not be created" "install the venv module (Debian: apt-get install python3-venv)"
fi
pip="$VENV/bin/python -m pip --disable-pip-version-check"

say "installing torch and the build tools (a large download the first time)"
run torch $pip install "${TORCH:-$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)}" \
    'setuptools<82' wheel ninja psutil ||
    fail "torch could not be installed (log: $VENV/torch.log)" "check the network; another build of torch can be named: make setup TORCH=..."

say "installing mmengine, mmdet and the rest"
run requirements $pip install -r requirements.txt ||
    fail "the requirements could not be installed (log: $VENV/requirements.log)" "check the network and run make setup again"

if ! "$VENV/bin/python" -c 'from mmcv.ops import nms' 2>/dev/null; then
    force=""
    "$VENV/bin/python" -c 'import torch, sys; sys.exit(torch.cuda.is_available())' && force="FORCE_CPU=1"
    say "building mmcv $MMCV with its ops: about 10 minutes on 2 cores, seconds when pip has it cached (log: $VENV/mmcv.log)"
    run mmcv env MMCV_WITH_OPS=1 $force MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        $pip install --no-build-isolation "mmcv==$MMCV" ||
        fail "mmcv could not be built (log: $VENV/mmcv.log)" "the Python headers must be installed (Debian: apt-get install python3-dev); with little memory: MAX_JOBS=1 make setup"
fi

run mmriem $pip install --no-deps --no-build-isolation -e . ||
    fail "mmriem itself could not be installed (log: $VENV/mmriem.log)" "see the log"
"$VENV/bin/python" -c 'import mmriem.core.coding._decoder, mmriem.core.representations.lattice._search' 2>/dev/null ||
    fail "the C code of mmriem was not compiled (log: $VENV/mmriem.log)" "the Python headers must be installed (Debian: apt-get install python3-dev)"

"$VENV/bin/python" - <<'PY' || fail "the installed packages do not work together" "remove $VENV and run make setup again"
import torch
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 9.0, 9.0], [20.0, 20.0, 29.0, 29.0]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
assert kept == [0, 2], f'mmcv.ops.nms kept {kept}, expected [0, 2]'
import mmdet  # noqa: E402, F401
PY
rm -f "$VENV"/.ready-*
touch "$stamp"
say "$VENV is ready"
