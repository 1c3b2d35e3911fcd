#!/bin/sh
# The row that carries the paper's claim, with the controls that it lacks: one teacher, one student, equal total cost.
# Not equal: GACD alone, which lacks its fine-tuning, AFT from a random start, and the teacher's own training. The head trained
# adversarially on GACD's frozen features shows how much of their weakness is the last layer's. Fine-tuning after standard
# training has gradients clipped and the rate 0.05: what it needed before 49cce59, to be tried without.
# Preset paper: 3.9e18 operations a seed, 21 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18" "$OUT/claim"

for seed in $SEEDS; do
    equal=$runs/pgdat-$seed
    train pgdat "$seed" $PGDAT $PGDAT_EPOCHS
    distil ard "$seed" $ARD --cost-of "$equal"
    distil gacd "$seed" $GACD $GACD_FIRST
    finetune gacd-aft "$seed" gacd --cost-of "$equal"
    gacd probe "$runs/gacd-$seed" $HEAD --seed "$seed" --out "$runs/gacd-head-$seed"
    gacd evaluate "$runs/gacd-head-$seed" $EVALUATE
    distil kd "$seed" $KD --cost-of "$equal"
    distil ard-first "$seed" $ARD $ARD_FIRST
    finetune ard-aft "$seed" ard-first --cost-of "$equal"
    distil kd-first "$seed" $KD $KD_FIRST
    finetune kd-aft "$seed" kd-first --cost-of "$equal"
    train aft-random "$seed" $AFT $AFT_ALONE
    train standard "$seed" $STANDARD $STANDARD_FIRST
    finetune standard-aft "$seed" standard --cost-of "$equal" --lr 0.05 --clip 1
    distil rslad "$seed" $RSLAD --cost-of "$equal"
    distil adaad "$seed" $ADAAD --cost-of "$equal"
    distil igdm "$seed" $IGDM --cost-of "$equal"
done

row claim "Teacher" "$OUT/cifar10/$RESNET18_T/teacher"
seeded claim "PGD-AT" pgdat
seeded claim "AFT from random" aft-random
seeded claim "AFT from natural" standard-aft
seeded claim "KD" kd
seeded claim "KD+AFT" kd-aft
seeded claim "ARD" ard
seeded claim "ARD+AFT" ard-aft
seeded claim "RSLAD" rslad
seeded claim "AdaAD" adaad
seeded claim "IGDM" igdm
seeded claim "GACD" gacd
seeded claim "GACD, adversarial head" gacd-head
seeded claim "GACD+AFT" gacd-aft
