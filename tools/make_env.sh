#!/usr/bin/env bash
# Make .venv, the environment every command of this repository runs in; do nothing if it is up to date.
#
#   bash tools/make_env.sh          (make env; `make test` and the examples call it too)
#
# Needs: Python >= 3.10 with venv, a C++17 compiler (GCC from 9 on, or clang), and, the first time, a package index.
# Reads: PYTHON   the interpreter to build on (default: python3, then python3.13 … python3.10)
#        CC, CXX  the compiler, and pip's own variables: PIP_INDEX_URL, PIP_FIND_LINKS, …
#
# torch is taken as it is if that interpreter has a suitable one; otherwise the CUDA build is installed
# where there is an NVIDIA GPU, and the CPU build where there is none.
set -euo pipefail

case ${1:-} in
    -h | --help)
        sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
    ?*)
        printf 'environment: error: %s is not an option; there is only --help\n' "$1" >&2
        exit 2
        ;;
esac
readonly TORCH_VERSION=2.13.0 # what the tests ran with; setup.py states the range
readonly OLDEST_TORCH="(2, 11)"
readonly CPU_WHEELS=https://download.pytorch.org/whl/cpu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly LOG=.venv/install.log
unset PIP_USER PIP_TARGET PIP_PREFIX # they would install beside .venv, not into it

say() { printf 'environment: %s\n' "$*" >&2; }
die() {
    printf 'environment: error: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 2
}

# Two stamps inside .venv, written last, hold what it was made from: a half-made environment has none.
packages_stamp() {
    printf '%s\n' "$PWD" "${PYTHON:-}" "torch $TORCH_VERSION"
    cat requirements.txt requirements-dev.txt
}
build_stamp() { cat setup.py pyproject.toml csrc/*; }

has_gpu() {
    compgen -G '/dev/nvidia[0-9]*' >/dev/null && return
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

packages_are_fresh() {
    [[ -x .venv/bin/python && -f .venv/packages.stamp ]] || return 1
    packages_stamp | cmp -s - .venv/packages.stamp || return 1
    # An upgrade of the system's Python leaves packages where the new one does not look.
    local version
    version=$(.venv/bin/python -ISc 'import sys; print("%d.%d" % sys.version_info[:2])') || return 1
    [[ -d .venv/lib/python$version ]] || return 1
    # The login node of a cluster may have made a CPU environment that a GPU node now finds.
    [[ $(<.venv/torch) != cpu ]] || ! has_gpu
}
build_is_fresh() { [[ -f .venv/build.stamp ]] && build_stamp | cmp -s - .venv/build.stamp; }
is_fresh() { packages_are_fresh && build_is_fresh; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python >= 3.10 (tried ${PYTHON:-python3, python3.13 … python3.10})." \
        "Install one, or name it: PYTHON=/path/to/python3 $0"
}

check_tools() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv module." "Debian, Ubuntu: apt-get install python3-venv"
    local compiler
    for compiler in ${CXX:-c++ g++ clang++}; do
        command -v "$compiler" >/dev/null && return
    done
    die "no C++ compiler (tried ${CXX:-c++, g++, clang++}); csrc/ has to be compiled." \
        "Debian, Ubuntu: apt-get install g++    macOS: xcode-select --install    or set CXX"
}

# Say which torch: installed (the interpreter's own), cuda or cpu.
choose_torch() {
    local gpu=False
    if has_gpu; then gpu=True; fi
    if "$python" - 2>/dev/null <<END; then
import sys, torch
version = tuple(int(part) for part in torch.__version__.split(".")[:2])
has_accelerator = torch.version.cuda or torch.version.hip
sys.exit(not (version >= $OLDEST_TORCH and (has_accelerator or not $gpu)))
END
        echo installed
    elif [[ $gpu == True ]]; then
        echo cuda
    else
        echo cpu
    fi
}

create_venv() {
    rm -rf .venv
    local command=("$python" -m venv) output
    [[ $torch != installed ]] || command+=(--system-site-packages)
    output=$("${command[@]}" .venv 2>&1) || die "$python -m venv .venv failed:" "$output"
    [[ $torch == installed ]] || return 0
    # "System" means the interpreter that a virtual environment was made from, not the environment itself.
    "$python" - .venv <<'END'
import site, sys
from pathlib import Path
if sys.prefix != sys.base_prefix:
    target = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
    (target / "parent_environment.pth").write_text("\n".join(site.getsitepackages()) + "\n")
END
}

# Bytecode is compiled afterwards, on all cores: pip would take one.
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-compile "$@" >>"$LOG" 2>&1
}

fail_install() {
    grep -v '^Ignoring' "$LOG" | tail -n 8 | sed 's/^/  | /' >&2
    cp "$LOG" install.log
    die "pip could not install $1 (above: the last lines; all of it: install.log)." \
        "Is there a network? A mirror or a folder of wheels is used when PIP_INDEX_URL or" \
        "PIP_FIND_LINKS names it. An installed torch is used when PYTHON names its interpreter."
}

install_packages() {
    local requirements=(-r requirements.txt -r requirements-dev.txt)
    case $torch in
        installed) pip_install "${requirements[@]}" || fail_install "the packages" ;;
        cuda) pip_install "torch==$TORCH_VERSION" "${requirements[@]}" || fail_install "the packages" ;;
        cpu)
            local build="torch==$TORCH_VERSION+cpu"
            [[ $(uname) != Darwin ]] || build="torch==$TORCH_VERSION" # there every build is for the CPU
            pip_install "$build" "${requirements[@]}" && return
            grep -q "No matching distribution found for torch" "$LOG" || fail_install "the packages"
            say "the package index has no CPU build of torch; asking $CPU_WHEELS"
            pip_install --extra-index-url "$CPU_WHEELS" "$build" "${requirements[@]}" ||
                fail_install "torch's CPU build and the packages"
            ;;
    esac
}

build() {
    say "compiling csrc/ (about a minute)"
    rm -f .venv/build.stamp
    if ! pip_install --no-build-isolation --no-deps -e .; then
        # From the compiler's first line to our hint, without the command lines and pip's own words.
        sed -n "/building '/,/end of output/{s/^      /  | /;p;}" "$LOG" | grep -v -e ' -I' -e 'end of' >&2
        die "csrc/ did not compile; all of the output is in $LOG"
    fi
    build_stamp >.venv/build.stamp
}

is_fresh && exit 0
# bash runs this when the child that the signal ended too is gone: nothing else is said of it.
trap 'printf "\n" >&2 && say "interrupted; the same command continues" && exit 130' INT
python=$(find_python)
# The lock lasts as long as file descriptor 9 is open, whatever ends this script.
exec 9>.venv.lock
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    say "another process is making .venv; waiting for it"
    "$python" -c 'import fcntl, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); fcntl.flock(9, fcntl.LOCK_EX)'
}
if ! packages_are_fresh; then
    check_tools
    torch=$(choose_torch)
    say "making .venv with $("$python" -V), torch: $torch"
    create_venv
    say "installing packages (first time: a minute or two, more on a slow network)"
    install_packages
    .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true # some packages hold templates
    printf '%s\n' "$torch" >.venv/torch
    packages_stamp >.venv/packages.stamp
fi
build_is_fresh || build
rm -f install.log # of an attempt that failed
say "ready: .venv"
