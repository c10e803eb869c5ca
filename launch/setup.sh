# shellcheck shell=bash
# Sourced by the other scripts: makes .venv beside the repository's files and installs the lock into it.
# PYTHON names another interpreter; PIP_* variables (an index, a proxy) are pip's own.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.installed

setup_fail() {
    echo "error: $*" >&2
    exit 2
}

setup() {
    local python=${PYTHON:-python3} wanted
    wanted=$(cat "$root/requirements.lock" "$root/setup.cfg" | cksum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    command -v "$python" >/dev/null || setup_fail "$python: not found; set PYTHON to a Python 3.11 or newer"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        setup_fail "$python is $("$python" --version 2>&1); leap-rl needs Python 3.11 or newer (set PYTHON)"
    echo "Installing requirements.lock into .venv (a minute or two, once)" >&2
    "$python" -m venv "$venv" || setup_fail "$python -m venv failed; on Debian: apt-get install python3-venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"
    echo "$wanted" >"$stamp"
}

setup
