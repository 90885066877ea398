#!/bin/sh
# Make .venv at the project's root, with the package and its development tools, from nothing but python3 and pip.
#
#   scripts/setup-env.sh           create, update or repair .venv; does nothing when it is up to date
#   scripts/setup-env.sh uv ...    run the uv that this script finds or fetches
#
# PYTHON=/path/to/python names the interpreter to use; otherwise it is the first that runs of: python3.13, 3.12, 3.14,
# python3, python on PATH; pyenv's versions; what uv provides.
set -eu

cd "$(dirname "$0")/.."
root=$(pwd -P)
venv=$root/.venv
unfinished=$venv/.unfinished # there while .venv is being written: after a killed run it is made anew
stamp=$venv/.up-to-date      # what .venv was last made from

say() { echo "stcontrast: $*" >&2; }
fail() {
    say "$@"
    exit 1
}

# --- Python ----------------------------------------------------------------------------------------------------------

# Print the path of a Python that will do. It has to run: pyenv's python3.12 on PATH may only say that it is not there.
usable() {
    "$1" -c '
import sys, sysconfig
if sys.version_info < (3, 12) or sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
print(sys.executable)' </dev/null 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is not a CPython 3.12 or newer that runs here."
        return
    fi
    versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for candidate in python3.13 python3.12 python3.14 python3 python \
        "$versions"/3.13*/bin/python "$versions"/3.12*/bin/python "$versions"/3.1[4-9]*/bin/python; do
        if usable "$candidate"; then return; fi
    done
}

# --- uv --------------------------------------------------------------------------------------------------------------

# An old uv does not know dependency groups.
uv_usable() { "$1" pip install --help 2>/dev/null </dev/null | grep -q -- '--group'; }

find_uv() {
    for candidate in uv "$root/.uv/bin/uv"; do
        if uv_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    for candidate in ${PYTHON:+"$PYTHON"} python3 python; do
        if "$candidate" -m pip --version </dev/null >/dev/null 2>&1; then
            say "fetching uv with $candidate -m pip"
            rm -rf "$root/.uv"
            # Into a folder: needs neither a virtual environment nor the right to change that Python's packages.
            PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore "$candidate" -m pip install --quiet \
                --disable-pip-version-check --target "$root/.uv" uv >&2 </dev/null ||
                fail "pip could not fetch uv (see above): check the network, or put a recent uv on PATH."
            uv_usable "$root/.uv/bin/uv" || fail "the uv that pip fetched does not run here: put a recent uv on PATH."
            echo "$root/.uv/bin/uv"
            return
        fi
    done
    fail "neither uv nor pip was found: install pip (for instance 'apt install python3-pip'), or put uv on PATH."
}

if [ "${1:-}" = uv ]; then
    shift
    uv=$(find_uv)
    exec "$uv" "$@"
fi

# --- .venv -----------------------------------------------------------------------------------------------------------

# One at a time, where there is flock.
exec 9<scripts/setup-env.sh
if command -v flock >/dev/null 2>&1; then
    flock -n 9 || { say "waiting for another run that is making .venv" && flock 9; }
fi

wanted=$(echo "$root" && cat pyproject.toml requirements.lock | cksum)

venv_runs() {
    usable "$venv/bin/python" >/dev/null &&
        "$venv/bin/python" -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, sys.argv[1]))' "$venv"
}
# The programs in a virtual environment that was copied from elsewhere still point to there.
venv_came_from_elsewhere() { [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$root" ]; }

if venv_runs && [ ! -e "$unfinished" ] && ! venv_came_from_elsewhere; then
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        exit 0
    fi
    uv=$(find_uv)
    fresh=
    say "updating .venv"
else
    python=$(find_python)
    uv=$(find_uv)
    fresh=yes
    rm -rf "$venv"
    if [ -n "$python" ]; then
        say "creating .venv with $python"
        "$uv" venv --quiet --python "$python" "$venv"
    else
        say "no Python 3.12 or newer on PATH or among pyenv's versions: asking uv for one"
        "$uv" venv --quiet --python 3.12 "$venv" ||
            fail "Python 3.12 or newer is missing, and uv could not provide it (see above).
  Install one (for instance 'apt install python3.12', 'pyenv install 3.12' or 'uv python install 3.12')
  and run this again, or say where one is: PYTHON=/path/to/python make install"
    fi
fi

touch "$unfinished"
rm -f "$stamp"
quiet=
[ -t 2 ] || quiet=--quiet # progress bars are for people
# pyproject.toml says what is needed; requirements.lock says which versions were tested.
if ! "$uv" pip install $quiet --python "$venv/bin/python" --constraint requirements.lock --group dev --editable .; then
    [ "$fresh" ] || rm -f "$unfinished" # what was there is still there
    fail "the installation failed (see above). It is safe to run it again."
fi
echo "$wanted" >"$stamp"
rm -f "$unfinished"
say ".venv is ready"
