#!/bin/sh
# Build .venv (or the folder that VENV names) from requirements.lock. Run by `make setup`; safe to run again.
#
# Needs a Python 3.11-3.13 with pip, and a package index; nothing else, and nothing outside .venv is written to.
# A uv on the PATH is used; otherwise one is installed into .venv/tools, which needs neither a writable nor a
# "not externally managed" Python. Every package must match a hash of the lock, so an index cannot slip another one in.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
# an environment that does not fit is removed below: no other folder may be named by mistake
if ! printf '%s' "$venv" | grep -qxE '\.venv(-[A-Za-z0-9.]+)?'; then
    echo "install: VENV=$venv must be a folder of this checkout called .venv or .venv-NAME, as in .venv-3.13." >&2
    exit 1
fi

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
# Compiled once here: without .pyc files every Airflow process would compile everything again.
unset PYTHONDONTWRITEBYTECODE
# A download would come from outside the package index.
export UV_PYTHON_DOWNLOADS=never

find_uv() {
    for uv in uv "$venv/tools/bin/uv" .venv/tools/bin/uv; do
        if "$uv" --version >/dev/null 2>&1; then return 0; fi
    done
    uv=""
    return 1
}

find_python() {
    # 3.11 first: the lock's tests run on it most often
    # quoted: the path of a Python may hold spaces
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3.12 python3.13 python3 python; fi
    for python in "$@"; do
        "$python" -c "$fits" 2>/dev/null || continue
        # a link made by a version manager may point at nothing, and some Pythons come without pip
        find_uv || "$python" -m pip --version >/dev/null 2>&1 || continue
        python=$("$python" -c 'import sys; print(sys.executable)')
        return 0
    done
    echo "install: no Python 3.11, 3.12 or 3.13 with pip among: ${PYTHON:-python3.11 python3.12 python3.13 python3 python}." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 1
}

# uv does not read pip's configuration: hand on what pip was told, unless uv was told something itself.
hand_on() { # pip setting, uv variable
    value=$("$python" -m pip config list 2>/dev/null | sed -n "s/^[a-z:.]*[.]$1='\(.*\)'\$/\1/p" | tail -n 1 | sed 's/\\n/ /g')
    if [ -n "$value" ] && [ -z "$(printenv "$2")" ]; then export "$2=$value"; fi
}

uv_was_told() {
    for file in "${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml" /etc/uv/uv.toml; do
        if [ -f "$file" ]; then return 0; fi
    done
    [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ]
}

if ! "$venv/bin/python" -c "$fits" 2>/dev/null; then
    rm -rf "$venv"
fi
find_python
if ! find_uv; then
    echo "install: uv is missing; installing it into $venv/tools"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$venv/tools" "uv>=0.8"
    find_uv || { echo "install: pip installed uv into $venv/tools, yet it does not run there." >&2; exit 1; }
fi
if ! uv_was_told; then
    hand_on index-url UV_DEFAULT_INDEX
    hand_on extra-index-url UV_INDEX
    hand_on find-links UV_FIND_LINKS
    hand_on cert SSL_CERT_FILE
fi
# The hashes decide what is accepted, so any index may deliver it.
export UV_INDEX_STRATEGY=unsafe-best-match

if [ ! -x "$venv/bin/python" ]; then
    "$uv" venv --quiet --allow-existing --python "$python" "$venv"
fi
echo "install: installing $(grep -c '^[a-z0-9]' requirements.lock) packages into $venv (some minutes the first time)"
"$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes --compile-bytecode requirements.lock
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --build-constraints requirements.lock --editable .
touch "$venv/installed"
echo "install: $venv holds $("$venv/bin/python" --version) and the packages of requirements.lock"
