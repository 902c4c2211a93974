# Sourced by the other scripts: a virtual environment in .venv with what the given locks pin, made or renewed when
# one has changed. Usage: . scripts/env.sh requirements.lock [another.lock …]
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

_locks=("$@")
_python=${PYTHON:-python3}
if ! "$_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "jetforge needs Python 3.10 or newer; $("$_python" --version) was found. Set PYTHON to another one." >&2
    exit 1
fi
_stamp=.venv/$(IFS=+; echo "${_locks[*]}").stamp
if ! cmp -s <(cat "${_locks[@]}" pyproject.toml) "$_stamp"; then
    echo "Installing ${_locks[*]} into .venv (once)…" >&2
    [ -x .venv/bin/python ] || "$_python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${_locks[@]/#/--requirement=}" 2> >(grep -v '^WARNING: Location' >&2)
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . 2> >(grep -v '^WARNING: Location' >&2)
    cat "${_locks[@]}" pyproject.toml > "$_stamp"
fi
PATH=$PWD/.venv/bin:$PATH
