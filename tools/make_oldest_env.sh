#!/usr/bin/env bash
# Make .venv-oldest-torch: what .venv has, with the oldest torch that setup.py allows in place of its own.
#
#   bash tools/make_oldest_env.sh          (make test-oldest-torch calls it)
#
# Needs: .venv (make env), a C compiler with binutils, and, the first time, a package index.
# Reads: CC, the compiler, and pip's own variables: PIP_INDEX_URL, PIP_FIND_LINKS, …
#
# torch is the CPU build where there is one to be had. Otherwise it is the CUDA build of the package index (half a GB),
# without CUDA's own libraries (several GB): stand-ins take their place, for which there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly ENVIRONMENT=.venv-oldest-torch CPU_WHEELS=https://download.pytorch.org/whl/cpu
readonly LOG=$ENVIRONMENT/install.log

case ${1:-} in
    -h | --help)
        sed -n '2,/^set -/s/^# \{0,1\}//p' "tools/${BASH_SOURCE[0]##*/}"
        exit
        ;;
    ?*)
        printf 'environment: error: %s is not an option; there is only --help\n' "$1" >&2
        exit 2
        ;;
esac
unset PIP_USER PIP_TARGET PIP_PREFIX # they would install beside it, not into it

say() { printf 'environment: %s\n' "$*" >&2; }

pip_install() {
    "$ENVIRONMENT/bin/python" -m pip install --disable-pip-version-check --no-compile --no-deps \
        "$@" >>"$LOG" 2>&1
}

install_torch() {
    # macOS has CPU builds alone, and they are called so nowhere.
    if [[ $(uname) != Darwin ]]; then
        pip_install "torch==$version+cpu" && return
        pip_install --retries 0 --timeout 20 --extra-index-url "$CPU_WHEELS" "torch==$version+cpu" && return
    fi
    pip_install "torch==$version"
}

version=$(sed -n 's/.*"torch>=\([0-9]*\.[0-9]*\).*/\1.0/p' setup.py)
stamp="torch $version, $PWD, $(.venv/bin/python -c 'import sys; print(sys.base_prefix, sys.version_info[:2])')"
[[ ! -f $ENVIRONMENT/stamp || $(<"$ENVIRONMENT/stamp") != "$stamp" ]] || exit 0

say "making $ENVIRONMENT with torch $version (a minute, more on a slow network)"
rm -rf "$ENVIRONMENT"
.venv/bin/python -m venv "$ENVIRONMENT"
if ! install_torch; then
    tail -n 8 "$LOG" | sed 's/^/  | /' >&2
    say "error: pip could not install torch $version (above: the last lines; all of it: $LOG)"
    exit 2
fi
# All that .venv imports from comes behind the new environment's own packages, of which torch is the only one.
packages=$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
.venv/bin/python -c 'import site, sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    >"$packages/packages_of_venv.pth"
if ! "$ENVIRONMENT/bin/python" -c 'import torch' 2>>"$LOG"; then
    .venv/bin/python .ci/cuda_stand_ins.py "$packages/torch/lib"
    "$ENVIRONMENT/bin/python" -c 'import torch'
fi
"$ENVIRONMENT/bin/python" -m compileall -q -j 0 "$packages" >/dev/null 2>&1 || true # some files are templates
printf '%s\n' "$stamp" >"$ENVIRONMENT/stamp"
say "ready: $ENVIRONMENT"
