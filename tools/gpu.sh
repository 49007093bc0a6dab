#!/usr/bin/env bash
# All that needs a GPU, in one call of some minutes: the tests, the commands, then records under results/.
#
#   tools/gpu.sh                    everything
#   tools/gpu.sh tests records      only these parts
#
# PYTHON is the interpreter, RESULTS the folder of the records. No part stops another; the summary at the end says what
# failed, and the exit status too. Each part ends by itself: the whole takes less than nine minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-results}
export PYTHONPATH=$PWD/src:$PWD TRITON_INTERPRET=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
mkdir -p "$RESULTS"
summary=()
failed=0

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"; print(torch.cuda.get_device_name(), torch.__version__)' || exit 2

# step SECONDS NAME COMMAND...
step() {
    local seconds=$1 name=$2 start=$SECONDS said=ok
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$seconds" "$@"
    local code=$?
    if ((code)); then
        said="FAILED ($code)"
        ((code == 124 || code == 137)) && said="NOT DONE within $seconds s"
        failed=1
    fi
    summary+=("$(printf '%-34s %4d s  %s' "$name" $((SECONDS - start)) "$said")")
}

tests() {
    local pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -p no:warnings --tb=short -m "" -n "${WORKERS:-8}")
    step 150 "operators" "${pytest[@]}" tests/ops/triton_contract.py
    step 120 "layers and networks" "${pytest[@]}" tests/models/test_gpu.py
}

commands() {
    local runs
    runs=$(mktemp -d)
    step 90 "train, val, predict" "$PYTHON" - "$runs" <<'SCRIPT'
import subprocess
import sys

out = sys.argv[1]
for words in (
    ["train", "--epochs", "2", "--out", f"{out}/run"],
    ["val", "--run", f"{out}/run"],
    ["bench", "acmix", "--device", "cuda", "--seconds", "2"],
):
    print("$ convattn", *words, flush=True)
    subprocess.run([sys.executable, "-c", "import convattn_command; convattn_command.main()", *words], check=True)
SCRIPT
    rm -rf "$runs"
}

records() {
    local bench=("$PYTHON" -m benchmarks) place=(--device cuda --out "$RESULTS") case mode dtype
    local bf16=("${place[@]}" --dtype bfloat16 --batch 64) fp32=("${place[@]}" --batch 64)
    for mode in forward train; do
        step 60 "acmix_resnet50 $mode bf16" "${bench[@]}" model acmix_resnet50 --mode $mode "${bf16[@]}" --processes 1
    done
    step 60 "attend bf16" "${bench[@]}" op 'attend-64@56' 'attend-512@7' "${bf16[@]}" --rounds 20
    for mode in forward train; do
        step 75 "acmix layers $mode bf16" "${bench[@]}" op acmix-64@56 acmix-512@7 acmix-256@28-s2 --mode $mode "${bf16[@]}" --rounds 20
    done
    step 60 "san, pssa bf16" "${bench[@]}" op 'san-64@56' 'pssa-64@56' "${bf16[@]}" --rounds 20
    for mode in forward train; do
        step 60 "acmix_resnet50 $mode fp32" "${bench[@]}" model acmix_resnet50 --mode $mode "${fp32[@]}" --processes 0
        step 60 "xvolution_resnet50 $mode bf16" "${bench[@]}" model xvolution_resnet50 --mode $mode "${bf16[@]}" --processes 1
    done
    for case in swin:swin_tiny pvt:pvt_v1_tiny san:san10; do
        dtype=acmix_${case%%:*}_tiny
        [[ $case == san* ]] && dtype=acmix_san10
        step 60 "$dtype forward bf16" "${bench[@]}" model "$dtype" --against "${case##*:}" "${bf16[@]}" --processes 0
    done
}

for part in "${@:-tests commands records}"; do
    for name in $part; do "$name"; done
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
