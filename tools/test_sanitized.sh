#!/bin/sh
# Runs the tests of the CPU kernels on a library built with AddressSanitizer and UndefinedBehaviorSanitizer, every
# buffer of a kernel's before a page that nobody may touch. It goes into a copy of the package under build/asan, so the checkout's own library stays as it is.
# Arguments are pytest's, or after the word fuzz those of python -m tests.ops.fuzz; without any: the native backend's
# tests under tests/ops, then a short fuzz on every instruction set.
# Needs GCC; compiling takes minutes the first time, the tests longer.
set -eu
cd "$(dirname "$0")/.."

. tools/python.sh
copy=build/asan/src

rm -rf "$copy"
mkdir -p "$copy"
cp -R src/convattn "$copy/"
rm -rf "$copy/convattn/_native"
"$python" tools/build_native.py --sanitize --objects build/asan/objects --out "$copy/convattn/_native"

# Python itself is not instrumented, so the sanitizers' runtime has to be there before it starts; and the C++ library,
# where the runtime looks for what throws exceptions as soon as it starts.
runtime="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libstdc++.so.6)"
export PYTHONPATH="$PWD/$copy${PYTHONPATH:+:$PYTHONPATH}"
# Python and torch keep much until the process ends: leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1
export CONVATTN_GUARD=1

LD_PRELOAD=$runtime "$python" -c '
import sys
from pathlib import Path
from convattn.ops import _native
if _native.reasons() or Path("build/asan").resolve() not in _native.FOLDER.resolve().parents:
    sys.exit(f"the sanitized library is not the one that loads: {_native.FOLDER}: {_native.reasons()}")
'
export LD_PRELOAD="$runtime"
case ${1:-} in
fuzz)
    shift
    exec "$python" -m tests.ops.fuzz "$@"
    ;;
'')
    "$python" -m pytest -p no:cacheprovider -s tests/ops -k "native and not test_native_build"
    for isa in avx512_bf16 avx512 avx2 baseline; do
        "$python" -m tests.ops.fuzz --cases 300 --isa $isa
    done
    ;;
*) exec "$python" -m pytest -p no:cacheprovider -s "$@" ;;
esac
