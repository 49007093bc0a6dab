#!/usr/bin/env bash
# All that needs a GPU, in one call of some minutes: the tests, the commands, then records under results/.
#
#   tools/gpu.sh                    everything
#   tools/gpu.sh tests records      only these parts
#
# PYTHON is the interpreter, RESULTS the folder of the records. No part stops another; the summary at the end says what
# failed, and the exit status too. The whole ends within LIMIT seconds (530): steps that find no time left say so.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-results}
export PYTHONPATH=$PWD/src:$PWD TRITON_INTERPRET=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
mkdir -p "$RESULTS"
LIMIT=${LIMIT:-530}
summary=()
failed=0

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"; print(torch.cuda.get_device_name(), torch.__version__)' || exit 2

# step SECONDS NAME COMMAND...
step() {
    local seconds=$1 name=$2 start=$SECONDS said=ok left=$((LIMIT - SECONDS))
    shift 2
    if ((left < 15)); then
        summary+=("$(printf '%-34s    -    NOT RUN, no time left' "$name")")
        failed=1
        return
    fi
    ((seconds > left)) && seconds=$left
    echo "== $name"
    timeout --signal=INT --kill-after=10 "$seconds" "$@" # interrupted, pytest still names what failed
    local code=$?
    if ((code)); then
        said="FAILED ($code)"
        ((code == 124 || code == 137)) && said="NOT DONE within $seconds s"
        failed=1
    fi
    summary+=("$(printf '%-34s %4d s  %s' "$name" $((SECONDS - start)) "$said")")
}

tests() {
    # Triton compiles some thousand kernels for them, which is what takes the time: all cores help
    local pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -p no:warnings --tb=short -m "" -n "${WORKERS:-$(nproc)}")
    step 180 "operators" "${pytest[@]}" tests/ops/triton_contract.py
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
    local bench=("$PYTHON" -m benchmarks) place=(--device cuda --batch 64 --rounds 20 --out "$RESULTS") mode pair
    local bf16=("${place[@]}" --dtype bfloat16)
    step 60 "acmix_resnet50 compiled" "${bench[@]}" gpu-warm --network acmix_resnet50 --batch 64
    for mode in forward train; do
        step 90 "acmix_resnet50 $mode bf16" "${bench[@]}" model acmix_resnet50 --mode $mode "${bf16[@]}" --processes 1
    done
    step 60 "acmix_resnet50 packed bf16" "${bench[@]}" model acmix_resnet50@packed --against conv_resnet50@packed "${bf16[@]}" --processes 0
    step 90 "attend bf16" "${bench[@]}" op attend-64@56 attend-512@7 "${bf16[@]}"
    step 60 "xvolution_resnet50 train bf16" "${bench[@]}" model xvolution_resnet50 --mode train "${bf16[@]}" --processes 0
    for pair in acmix_swin_tiny:swin_tiny acmix_pvt_tiny:pvt_v1_tiny acmix_san10:san10; do
        step 60 "${pair%%:*} forward bf16" "${bench[@]}" model "${pair%%:*}" --against "${pair##*:}" "${bf16[@]}" --processes 0
    done
    step 60 "acmix_resnet50 forward fp32" "${bench[@]}" model acmix_resnet50 "${place[@]}" --processes 0
    step 60 "acmix layers train bf16" "${bench[@]}" op acmix-64@56 acmix-256@28-s2 --mode train "${bf16[@]}"
    step 60 "san, pssa bf16" "${bench[@]}" op san-64@56 pssa-64@56 "${bf16[@]}"
}

for part in "${@:-tests commands records}"; do
    for name in $part; do "$name"; done
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
