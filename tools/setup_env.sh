#!/usr/bin/env bash
# Makes .venv ready: torch, mmcv with its ops, mmengine, mmdet, mmriem. Safe to run again.
#
#   STACK   openmmlab (mmcv, mmengine, mmdet) or onedl, their maintained forks (default: what is in VENV, else openmmlab)
#   PYTHON  interpreter to build the environment with (default: python3.11, else python3.12, else python3)
#   VENV    where the environment goes (default: .venv)
#   TORCH   what to install as torch (default: the pin in requirements.txt)
#   MAX_JOBS  compilers at a time (default: all cores; each takes 2 GB of memory)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
watcher=""
trap '[ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true' EXIT

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] FAILED: %s\n' "$1" >&2
    printf '[setup] What to do: %s\n' "$2" >&2
    exit 1
}
watch() { # watch LOG: every ten seconds, what a command is at
    local started=$SECONDS
    while sleep 10 >/dev/null 2>&1; do
        say "  $((SECONDS - started)) s: $(grep -v '^ *$' "$1" | tail -n 1 | cut -c1-100)"
    done
}
run() { # run LOG COMMAND...: shows no more than `watch` does unless it fails, then the last lines of the log
    local log="$VENV/$1.log" status=0
    shift
    : >"$log"
    watch "$log" &
    watcher=$!
    "$@" >"$log" 2>&1 || status=$?
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    watcher=""
    [ "$status" = 0 ] || tail -n 25 "$log" >&2
    return "$status"
}

made=$(cat "$VENV/.stack" 2>/dev/null || true)
STACK=${STACK:-${made:-openmmlab}}
stack="requirements-$STACK.txt"
[ -e "$stack" ] || fail "STACK=$STACK is not known" "call: make setup STACK=openmmlab, or STACK=onedl"
[ -z "$made" ] || [ "$made" = "$STACK" ] ||
    fail "$VENV holds the packages of $made, and those of $STACK install modules of the same names" \
        "name another folder: make setup STACK=$STACK VENV=.venv-$STACK"

sources=(requirements.txt "$stack" setup.py tools/setup_env.sh tools/maintain/build_mmcv.py)
while IFS= read -r source; do sources+=("$source"); done < <(find mmriem -name '*.[ch]' | sort)
stamp="$VENV/.ready-$(cat "${sources[@]}" | sha256sum | cut -c1-16)"
if [ -e "$stamp" ]; then
    say "$VENV is ready"
    exit 0
fi

python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3 || true)}
[ -n "$python" ] || fail "no python3 found" "install Python 3.11 (Debian: apt-get install python3.11 python3.11-venv python3.11-dev)"
[ ! -x "$VENV/bin/python" ] || python="$VENV/bin/python"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' ||
    fail "the versions in requirements.txt need Python 3.11 or 3.12, found $("$python" --version)" \
        "call: make setup PYTHON=python3.11; mmriem itself installs into Python 3.10 to 3.13, see docs/install.md"
for tool in gcc g++; do
    command -v "$tool" >/dev/null ||
        fail "$tool not found, and mmcv's ops are compiled here" "install a C++ compiler (Debian: apt-get install build-essential; Fedora: dnf install gcc-c++)"
done

if [ ! -x "$VENV/bin/python" ]; then
    say "creating $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" ||
        fail "the virtual environment could not be created" "install the venv module (Debian: apt-get install python3-venv)"
fi
echo "$STACK" >"$VENV/.stack"
pip="$VENV/bin/python -m pip --disable-pip-version-check"

say "installing torch and the build tools (a large download the first time)"
run torch $pip install "${TORCH:-$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)}" \
    'setuptools<82' wheel ninja ||
    fail "torch could not be installed (log: $VENV/torch.log)" "check the network; another build of torch can be named: make setup TORCH=..."

say "installing mmengine, mmdet and the rest"
requirements=requirements.txt
if [ -n "${TORCH:-}" ]; then
    requirements="$VENV/requirements.txt"
    grep -v '^torch==' requirements.txt >"$requirements"
fi
run requirements $pip install --no-build-isolation -r "$requirements" -r "$stack" ||
    fail "the requirements could not be installed (log: $VENV/requirements.log)" "check the network and run make setup again"

mmcv_built="$VENV/.mmcv-built" # absent: mmcv came from elsewhere, and nobody knows for which torch and with which flags
if [ ! -e "$mmcv_built" ] || ! "$VENV/bin/python" -c 'from mmcv.ops import nms' 2>/dev/null; then
    mmcv=$(sed -n 's/^# build: //p' "$stack")
    say "building $mmcv with its ops: two minutes on 2 cores, seconds when it was built before (log: $VENV/mmcv.log)"
    wheel=$("$VENV/bin/python" tools/maintain/build_mmcv.py "$mmcv" --log "$VENV/mmcv.log") ||
        fail "$mmcv could not be built (log: $VENV/mmcv.log)" "the Python headers must be installed (Debian: apt-get install python3-dev); with little memory: MAX_JOBS=1 make setup"
    run mmcv-install $pip install --force-reinstall --no-deps "$wheel" && run mmcv-install $pip install "$wheel" ||
        fail "$wheel could not be installed (log: $VENV/mmcv-install.log)" "see the log"
    echo "$wheel" >"$mmcv_built"
fi

say "installing mmriem itself, from this folder"
run mmriem $pip install --no-deps --no-build-isolation -e . ||
    fail "mmriem itself could not be installed (log: $VENV/mmriem.log)" "see the log"
"$VENV/bin/python" -m mmriem.doctor --detectors ||
    fail "the installed packages do not work together" "remove $VENV and run make setup again"
rm -f "$VENV"/.ready-*
touch "$stamp"
say "$VENV is ready"
