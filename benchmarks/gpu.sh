#!/usr/bin/env bash
# All that is to be measured on a GPU, step by step, each in under 8 minutes:
#   benchmarks/gpu.sh FOLDER [SIZE [DEVICE]]     SIZE: 7b (default) or small; DEVICE: cuda (default) or cpu
# FOLDER/figures.jsonl gets every figure as soon as it is found, and a line when a step has ended; FOLDER/STEP.log what the
# step printed; FOLDER/efficiency.json the whole (docs/results/<date>-efficiency.json). Call it again to go on: steps that
# ended well are not run again. Ends with 0, with 1 where a step failed, with 3 where the seconds of LIMIT ran out.
# Plain Python with PyTorch, Transformers, peft, click and pytest will do; PYTHON names another than python3.
set -u
mkdir -p "$1" || exit 2
FOLDER=$(cd "$1" && pwd) SIZE=${2:-7b} DEVICE=${3:-cuda} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-1000000}
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 GPU_TESTS_ON=$DEVICE
FIGURES=$FOLDER/figures.jsonl ENDED=0

step() {  # NAME COMMAND...
  local name=$1 left=$((LIMIT - SECONDS)) began=$SECONDS status
  shift
  grep -qs "^{\"step\": \"$name\", \"status\": 0," "$FIGURES" && return
  if [ $left -lt 60 ]; then ENDED=3; return; fi
  echo "== $name"
  timeout $((left < 470 ? left : 470)) "$@" 2>&1 | tee "$FOLDER/$name.log" |
    awk -v figures="$FIGURES" '{ print; fflush() } /^\{/ { print >> figures; fflush(figures) }'
  status=${PIPESTATUS[0]}
  echo "{\"step\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - began))}" >> "$FIGURES"
  "$PYTHON" benchmarks/summary.py "$FIGURES" > "$FOLDER/efficiency.json"
  if [ "$status" != 0 ]; then echo "== $name failed: it ended with $status" >&2; ENDED=1; fi
}

same=(--size "$SIZE" --device "$DEVICE")
few=(); [ "$SIZE" = small ] && few=(--segments 1 --segments 16)
# pyproject.toml's settings ask for plugins that need not be there, and take anyone's warnings for errors.
step smoke env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
  -o addopts=--import-mode=importlib -o filterwarnings= -m gpu tests/model/test_gpu.py
step compress "$PYTHON" benchmarks/compress.py "${same[@]}"
step read "$PYTHON" benchmarks/read.py "${same[@]}"
step efficiency "$PYTHON" -c "from vococache.pipeline.cli import main; main()" bench efficiency "${same[@]}" "${few[@]}"
step load "$PYTHON" benchmarks/load.py "${same[@]}"
step training "$PYTHON" benchmarks/training.py "${same[@]}"
step fewer_bits "$PYTHON" benchmarks/fewer_bits.py "${same[@]}"
exit $ENDED
