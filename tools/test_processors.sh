#!/bin/sh
# Repeats the calls that the tests make of the CPU kernels with other compilers and on other processors: every instruction
# set by GCC and by clang here, and aarch64 (NEON, and SVE of 256 bits) under qemu. tests/ops/recorded.py writes the calls
# down with the answers that the tests have compared with float64; tests/ops/replay.cpp makes them again.
# Debian: apt-get install g++-aarch64-linux-gnu qemu-user clang-19 libomp-19-dev. What is missing is named and left out.
set -eu
cd "$(dirname "$0")/.."

. tools/python.sh
out=build/processors
calls=$out/calls.bin
failed=0
mkdir -p "$out"

echo "recording what the tests call (minutes) ..."
CONVATTN_RECORD=$calls OMP_NUM_THREADS=2 "$python" -m pytest -q -p no:cacheprovider tests/ops/test_contract.py \
    tests/ops/test_offset_convolution.py tests/ops/test_pixel_shift.py tests/ops/test_native.py tests/ops/test_native_acmix.py \
    -k "native and not lower_instruction"

# build NAME COMPILER: the library and the program that repeats the calls, under build/processors/NAME
build() {
    CXX=$2 "$python" tools/build_native.py --out "$out/$1" --objects "$out/$1/objects"
    $2 -std=c++17 -O1 -fopenmp tests/ops/replay.cpp "$out/$1/libconvattn.so" -o "$out/$1/replay"
}

# replay WORDS: prints the last line alone where all is well
replay() {
    echo "$*" | sed "s|$out/||g"
    if "$@" "$calls" >"$out/answer.txt" 2>&1; then tail -n 1 "$out/answer.txt"; else
        cat "$out/answer.txt"
        failed=1
    fi
}

host() {
    build "$1" "$2"
    for isa in avx512_bf16 avx512 avx2 baseline; do
        replay env OMP_NUM_THREADS=2 CONVATTN_CPU_ISA=$isa LD_LIBRARY_PATH="$out/$1" "$out/$1/replay"
    done
}

host gcc "${CXX:-g++}"

clang=
for one in clang++ clang++-20 clang++-19 clang++-18 clang++-17 clang++-16; do
    if [ "$(echo __clang_major__ | "$one" -E -P -x c++ - 2>/dev/null || echo 0)" -ge 16 ] 2>/dev/null &&
        echo "int main() {}" | "$one" -fopenmp -x c++ - -o "$out/links" 2>/dev/null; then
        clang=$one
        break
    fi
done
if [ -n "$clang" ]; then host clang "$clang"; else echo "clang: not run: needs clang 16 or newer and its libomp"; fi

if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
    build aarch64 aarch64-linux-gnu-g++
    for cpu in cortex-a72 max,sve256=on,sve512=off,sve-default-vector-length=32; do
        replay qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH="$out/aarch64" \
            -E OMP_NUM_THREADS=2 "$out/aarch64/replay"
    done
else
    echo "aarch64: not run: needs aarch64-linux-gnu-g++ and qemu-aarch64"
fi
exit $failed
