#!/usr/bin/env bash
# Trains the embedded model, stage by stage, and puts it in its place. A stage that is done is not done again; one
# that was interrupted goes on from its last checkpoint.
set -euo pipefail

# Large tensors come and go with every step: giving their pages back to the kernel each time costs a sixth of the time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 MALLOC_TOP_PAD_=268435456

stage() { # NAME COMMAND...
  local out=$RUNS/$1; shift
  if [ -f "$out/model/config.json" ]; then return; fi
  local resume=(); if compgen -G "$out/checkpoint-*/trainer_state.json" > /dev/null; then resume=(--resume); fi
  "$@" "${resume[@]}"
}

stage 1-tower "$BIN/python" -m vococache.pipeline.training.tower "$RECIPES/embedded-1-tower.yaml" "$RUNS/1-tower"
for name in 2-see 3-compress; do
  stage $name "$BIN/voco" train compress --config "$RECIPES/embedded-$name.yaml" --out "$RUNS/$name"
done
for name in 4-temporal 5-temporal 6-temporal 7-temporal; do
  stage $name "$BIN/voco" train temporal --config "$RECIPES/embedded-$name.yaml" --out "$RUNS/$name"
done
"$BIN/python" -m vococache.pipeline.training.embed "$RUNS/7-temporal/model"
