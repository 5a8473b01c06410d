# Sourced by quickstart, test and .ci/run: a virtual environment with shoal in it.
# SHOAL_VENV names another place than .venv; a finished environment is used again until setup.cfg or constraints.txt change.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SHOAL_VENV:-$root/.venv}

# The first Python of 3.11 to 3.14 that can make virtual environments.
find_python() {
    local name
    for name in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "shoal: no Python 3.11 to 3.14 with venv was found; install one (Debian: apt install python3 python3-venv)" >&2
    return 1
}

# ensure_environment EXTRAS: EXTRAS is empty or test
ensure_environment() {
    local extras=${1:-} stamp wanted python
    stamp=$venv/shoal-installed
    wanted="$root $(cat "$root/setup.cfg" "$root/constraints.txt" | cksum)"
    if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && grep -qxF "$wanted ${extras:-none}" "$stamp"; then
        return
    fi
    python=$(find_python)
    if [ ! -x "$venv/bin/python" ]; then
        echo "making a virtual environment in $venv ($("$python" -V))" >&2
        "$python" -m venv "$venv"
    fi
    echo "installing shoal and what it needs; the first time this takes some minutes" >&2
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}"
    # What has the test extras has all that a run without them needs.
    { echo "$wanted none"; [ -z "$extras" ] || echo "$wanted $extras"; } >"$stamp"
}
