#!/bin/sh
# Measures, chooses the length, trains and evaluates, on a machine with one GPU that has Python 3.11,
# torch, torchvision, timm and safetensors; what needs more is left out and told. Before, where the
# project is:  cd suites/table6-gpu; dvc repro prepare@cifar10; asl-pipe bundle all -o table6-gpu.pyz
#
#     sh run.sh [FOLDER [SECONDS [OPTION...]]]
#
# FOLDER takes table6-gpu.results.zip (default: this one). After SECONDS (default: 570) it stops with
# a checkpoint and exit code 75; the same command goes on. OPTIONs go to the bundle: --compile.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
seconds=${2:-570}
if [ $# -gt 2 ]; then shift 2; else shift $#; fi
bundle=$here/table6-gpu.pyz
if [ ! -f "$bundle" ]; then
    echo "$bundle is not there; make it where the project is: asl-pipe bundle all -o table6-gpu.pyz" >&2
    exit 2
fi
exec timeout --preserve-status --signal=TERM "$seconds" "${PYTHON:-python3}" "$bundle" \
    --device "${DEVICE:-cuda}" --minutes "${MINUTES:-7}" --skip-missing --checkpoint-minutes 1 \
    --results "$out/table6-gpu.results.zip" "$@"
