#!/bin/sh
# Figures 3 and 4: differences of the logits' correlation matrices (CIFAR-100, WRN-40-2 to WRN-16-2, ARD beside GACD).
# Preset paper: 3e17 operations, 2 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar100 "$WRN40_T"
place cifar100 "$WRN40_T" "$WRN16"
distil ard 0 $ARD_100 $ARD_EPOCHS
distil gacd 0 $GACD $GACD_EPOCHS
finetune gacd-aft 0 gacd $AFT_EPOCHS
gacd analyze "$runs/ard-0" "$runs/gacd-0" "$runs/gacd-aft-0" --teacher "$guide" $ANALYZE --out "$OUT/figures34"
