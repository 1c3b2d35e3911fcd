#!/bin/sh
# The row that carries the paper's claim, with the controls that it lacks: one teacher, one student, equal total cost.
# Not equal: GACD alone, which lacks its fine-tuning, AFT from a random start, and the teacher's own training.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18" "$OUT/claim"

for seed in $SEEDS; do
    equal="--cost-of $runs/pgdat-$seed"
    train pgdat "$seed" $PGDAT $PGDAT_EPOCHS
    distil ard "$seed" $ARD $equal
    distil gacd "$seed" $GACD $GACD_FIRST
    finetune gacd-aft "$seed" gacd $equal
    distil kd "$seed" $KD $equal
    distil ard-first "$seed" $ARD $ARD_FIRST
    finetune ard-aft "$seed" ard-first $equal
    distil kd-first "$seed" $KD $KD_FIRST
    finetune kd-aft "$seed" kd-first $equal
    train aft-random "$seed" $AFT $AFT_ALONE
    train standard "$seed" $STANDARD $STANDARD_FIRST
    finetune standard-aft "$seed" standard $equal
    distil rslad "$seed" $RSLAD $equal
    distil adaad "$seed" $ADAAD $equal
    distil igdm "$seed" $IGDM $equal
done

row claim "Teacher" "$OUT/cifar10/$RESNET18_T/teacher"
row claim "PGD-AT" $(every pgdat)
row claim "AFT from random" $(every aft-random)
row claim "AFT from natural" $(every standard-aft)
row claim "KD" $(every kd)
row claim "KD+AFT" $(every kd-aft)
row claim "ARD" $(every ard)
row claim "ARD+AFT" $(every ard-aft)
row claim "RSLAD" $(every rslad)
row claim "AdaAD" $(every adaad)
row claim "IGDM" $(every igdm)
row claim "GACD" $(every gacd)
row claim "GACD+AFT" $(every gacd-aft)
