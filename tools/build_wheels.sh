#!/bin/sh
# Builds the source distribution and the wheel into dist/ and tries the wheel.
# With docker: by cibuildwheel, as pyproject.toml says, in manylinux_2_28 (aarch64 too where qemu or the machine runs
# it: CIBW_ARCHS=aarch64). Without: on this machine, by `python -m build`; such a wheel is for machines with this
# glibc or a newer one, and a package index does not take it.
set -eu
cd "$(dirname "$0")/.."

. tools/python.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

"$python" -m venv "$work/venv"
tool=$work/venv/bin/python
"$tool" -m pip install --quiet build

rm -rf build/lib.* build/bdist.* # what an earlier build left there would go into the wheel
mkdir -p dist
"$tool" -m build --sdist --outdir "$work/dist" .
sdist=$(echo "$work"/dist/*.tar.gz)

if docker info >/dev/null 2>&1; then
    "$tool" -m pip install --quiet cibuildwheel
    CIBW_ARCHS=${CIBW_ARCHS:-$(uname -m)} "$tool" -m cibuildwheel --platform linux --output-dir "$work/dist" "$sdist"
else
    echo "docker does not run here: the wheel is built for this machine's glibc" >&2
    # from the source distribution, so that one that lacks a file is found out
    mkdir "$work/source"
    tar -xzf "$sdist" -C "$work/source" --strip-components 1
    CONVATTN_REQUIRE_NATIVE=1 "$tool" -m build --wheel --outdir "$work/dist" "$work/source"
    # the caller's Python has torch; the wheel is put before its own convattn
    "$tool" -m pip install --quiet --no-deps --target "$work/installed" "$work"/dist/*.whl
    (cd "$work" && PYTHONPATH=$work/installed "$python" -c '
from convattn.ops import _native
reasons = _native.reasons()
if reasons or "installed" not in _native.__file__:
    raise SystemExit(f"the wheel does not work: {_native.__file__}: {reasons}")
print("the wheel loads, with", _native.instruction_set())')
fi

mv "$work"/dist/* dist/
ls dist
