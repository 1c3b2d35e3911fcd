#!/bin/sh
# The ablation of the weights: GACD without them, ARD with them; and, which the paper only argues about, leaving out what the
# teacher misclassifies instead of weighing it. Beside them GACD with the teacher's projection trained too, as CRD has it.
# Preset paper: 2.6e19 operations, 144 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$WRN34"

distil gacd 0 $GACD $GACD_EPOCHS
distil gacd-plain 0 $GACD $GACD_EPOCHS --weights none
distil gacd-drop 0 $GACD $GACD_EPOCHS --weights correct
distil gacd-trained 0 $GACD $GACD_EPOCHS --projection trained
for name in gacd gacd-plain gacd-drop gacd-trained; do
    finetune "$name-aft" 0 "$name" $AFT_EPOCHS
done
distil ard 0 $ARD $ARD_EPOCHS
distil ard-weighted 0 $ARD $ARD_EPOCHS --weights probability
distil ard-drop 0 $ARD $ARD_EPOCHS --weights correct

row ablation "GACD+AFT/weighted" "$runs/gacd-aft-0"
row ablation "GACD+AFT/not weighted" "$runs/gacd-plain-aft-0"
row ablation "GACD+AFT/misclassified left out" "$runs/gacd-drop-aft-0"
row ablation "GACD+AFT/both projections trained" "$runs/gacd-trained-aft-0"
row ablation "ARD/not weighted" "$runs/ard-0"
row ablation "ARD/weighted" "$runs/ard-weighted-0"
row ablation "ARD/misclassified left out" "$runs/ard-drop-0"
