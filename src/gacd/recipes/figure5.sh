#!/bin/sh
# Figure 5: t-SNE of birds, trucks and adversarial trucks for a standard network, the teacher, ARD and GACD (CIFAR-10).
# Preset paper: 1.6e18 operations, 9 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18" "$OUT/claim"
train standard 0 $STANDARD $STANDARD_FIRST
train pgdat 0 $PGDAT $PGDAT_EPOCHS
distil ard 0 $ARD --cost-of "$runs/pgdat-0"
distil gacd 0 $GACD $GACD_FIRST
finetune gacd-aft 0 gacd --cost-of "$runs/pgdat-0"
gacd analyze "$runs/standard-0" "$runs/ard-0" "$runs/gacd-0" "$runs/gacd-aft-0" --teacher "$guide" \
    --crafted-on "$runs/standard-0" $ANALYZE --out "$OUT/figure5"
