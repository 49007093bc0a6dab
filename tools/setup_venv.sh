#!/bin/sh
# Makes the checkout's own virtual environment, .venv, and installs the package with its development tools into it.
# Does nothing where that is done already for this pyproject.toml and csrc/; rebuilds an environment that is broken or
# half made.
# PYTHON=... names the interpreter to build on, EXTRAS=... other optional dependencies than "dev".
set -eu
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/convattn-setup
extras=${EXTRAS:-dev}

say() { printf '%s\n' "$*" >&2; }

# What this environment was made from. The path belongs to it: scripts and the editable install hold absolute paths.
# The compilers do too: installing convattn compiles csrc/ where there is one.
wanted() {
    pwd
    echo "$extras"
    for compiler in ${CXX:-g++ c++ clang++}; do
        command -v "$compiler" || :
    done
    cat pyproject.toml setup.py tools/build_native.py csrc/* 2>/dev/null || :
}

healthy() { "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if [ -f "$stamp" ] && wanted | cmp -s - "$stamp" && healthy; then
    exit 0
fi

# The first interpreter that is new enough and can make environments; else one line for each and why not.
find_python() {
    refused=
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python python3.14 python3.13 python3.12 python3.11
    fi
    for candidate; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            refused="$refused
  $candidate is Python $version; convattn needs 3.11 or newer"
        elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            refused="$refused
  $candidate (Python $version) has no venv module; on Debian or Ubuntu: sudo apt-get install python$version-venv"
        else
            echo "$candidate"
            return 0
        fi
    done
    say "convattn: no Python here can build the environment.${refused:-
  none of these runs: $*}"
    say "Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 ..."
    return 1
}

half_made() { [ -f "$stamp" ] && [ ! -s "$stamp" ]; }

if half_made || ! healthy; then
    python=$(find_python) || exit 1
    if [ -e "$venv" ] || [ -h "$venv" ]; then
        say "$venv is broken or half made: building it anew"
        rm -rf "$venv"
    fi
    "$python" -m venv "$venv"
fi

: >"$stamp" # empty until the installation is through: a run that is cut short is then known as half made
say "Installing convattn and its tools into $venv (a few minutes the first time: torch is large) ..."
quiet=--quiet
[ -t 2 ] && quiet= # a person who watches sees pip's progress
if ! "$venv/bin/python" -m pip install --quiet --upgrade pip ||
    ! "$venv/bin/python" -m pip install $quiet --editable ".[$extras]"; then
    say "convattn: the installation did not get through (see pip's message above); the next make starts it anew."
    exit 1
fi
wanted >"$stamp.new"
mv "$stamp.new" "$stamp"
