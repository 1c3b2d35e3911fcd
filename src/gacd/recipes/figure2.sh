#!/bin/sh
# Figure 2: GACD+AFT against the number of negatives k (at T 0.1) and the temperature T (at k 16384).
# Preset paper: 3.9e18 operations, 21 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18"

point() { # NAME, the row's cell, OPTIONS...
    name=$1 cell=$2
    shift 2
    distil "gacd-$name" 0 $GACD $GACD_EPOCHS "$@"
    finetune "gacd-$name-aft" 0 "gacd-$name" $AFT_EPOCHS
    row figure2 "$cell" "$runs/gacd-$name-aft-0"
}
for k in 16 64 256 1024 4096 16384; do
    point "k$k" "k/$k" --k "$k"
done
for t in 0.02 0.05 0.07 0.2; do
    point "t$t" "T/$t" --temperature "$t"
done
row figure2 T/0.1 "$runs/gacd-k16384-aft-0"
