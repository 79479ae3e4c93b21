# Read by the scripts beside it, not run: the checkout's virtual environment in .venv, made on first use
# from requirements/dev.txt and brought up to date when that file or pyproject.toml changes.
# Leaves the caller in the checkout, with the environment's programs first on the PATH.
#
# PYTHON=/path/to/python3 chooses the interpreter it is made from.
#
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# The first entry of PATH that this user cannot replace; empty when there is none.
_out_of_reach() {
    find "$1" \( \
        -type d ! \( -readable -writable -executable \) -o \
        -type f \( ! -readable -o ! -writable ! -user "$(id -u)" \) \
        \) -print -quit 2>/dev/null || true
}

# require_access PATH REMEDY: end the script with a sentence and REMEDY unless this user can replace PATH and
# everything in it. Another user, often root, may have made it in an earlier run.
require_access() {
    local path=$1 remedy=$2 entry=
    if [ -e "$path" ] || [ -L "$path" ]; then
        entry=$(_out_of_reach "$path")
        if [ -n "$entry" ] && [ -O "$entry" ]; then
            remedy="Give yourself access: chmod -R u+rwX $path"
        fi
    elif [ ! -w . ]; then
        entry=$PWD
        remedy="Work in a checkout of your own: git clone $(printf %q "$PWD")"
    fi
    [ -n "$entry" ] || return 0
    echo "error: the user $(id -un) may not change $entry: $(stat -c 'owner %U, mode %a' "$entry")" >&2
    echo "  hint: $remedy" >&2
    exit 1
}

_usable_python() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

_make_venv() {
    local python
    if python=$(_usable_python) && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv .venv
    elif command -v uv >/dev/null; then
        echo "making .venv with uv" >&2
        uv venv --quiet --allow-existing --python "${python:->=3.11}" .venv
    elif [ -n "${python:-}" ]; then
        echo "error: $python cannot make virtual environments" >&2
        echo "  hint: apt-get install python3-venv, or install uv" >&2
        return 1
    else
        echo "error: Python 3.11 or later is needed, and ${PYTHON:-python3} is not one" >&2
        echo "  hint: install one, or name it: PYTHON=/path/to/python3 $0; with uv installed, uv fetches it" >&2
        return 1
    fi
}

_fill_venv() {
    # An environment that uv made has no pip in it.
    local install=(.venv/bin/python -m pip --disable-pip-version-check install)
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        install=(uv pip install --python .venv)
    fi
    echo "installing requirements/dev.txt into .venv" >&2
    "${install[@]}" --quiet --require-hashes -r requirements/dev.txt
    # The build backend is among the pinned packages: no second, unpinned environment to build in.
    "${install[@]}" --quiet --no-deps --no-build-isolation --editable .
}

_bring_venv_up_to_date() {
    local stamp=.venv/installed-from wanted
    wanted=$(cat requirements/dev.txt pyproject.toml | cksum)
    # The interpreter of an environment that root made may lie in root's home.
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || [ ! -x .venv/bin/python ] || return 0
    require_access .venv "Remove it, and this script makes another: sudo rm -r .venv"
    rm -f "$stamp"
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || _make_venv
    _fill_venv
    echo "$wanted" >"$stamp"
}

_bring_venv_up_to_date
PATH=$PWD/.venv/bin:$PATH
export PATH

# pytest's cache is for the owner of the checkout. A run with sudo leaves no file in it that the owner
# cannot replace, and a run that finds such files does without.
if [ ! -O . ] || { [ -e .pytest_cache ] && [ -n "$(_out_of_reach .pytest_cache)" ]; }; then
    export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -p no:cacheprovider"
fi
