#!/bin/sh
# The claim's row at half, twice and four times its learning rates, seed 0, so that each method has had as many tries; GACD's are
# those of its first stage. Which is best is to be read off the held-out images (val_robust in metrics.jsonl), not off the table.
# Preset paper: 6.0e18 operations, 33 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18" "$OUT/claim"
equal=$runs/pgdat-0
train pgdat 0 $PGDAT $PGDAT_EPOCHS
distil ard 0 $ARD --cost-of "$equal"
distil rslad 0 $RSLAD --cost-of "$equal"
distil gacd 0 $GACD $GACD_FIRST
finetune gacd-aft 0 gacd --cost-of "$equal"

tries() { # NAME, RATES of GACD, ARD, PGD-AT and RSLAD
    distil "gacd-$1" 0 $GACD $GACD_FIRST --lr "$2"
    finetune "gacd-$1-aft" 0 "gacd-$1" --cost-of "$equal"
    distil "ard-$1" 0 $ARD --cost-of "$equal" --lr "$3"
    train "pgdat-$1" 0 $PGDAT $PGDAT_EPOCHS --lr "$4"
    distil "rslad-$1" 0 $RSLAD --cost-of "$equal" --lr "$5"
}
tries half $HALF_RATES
tries double $DOUBLE_RATES
tries fourfold $FOURFOLD_RATES

for method in PGD-AT=pgdat ARD=ard RSLAD=rslad GACD+AFT=gacd; do
    name=${method#*=} aft=
    [ "$name" = gacd ] && aft=-aft
    row rates "${method%=*}/half" "$runs/$name-half$aft-0"
    row rates "${method%=*}/the claim's" "$runs/$name$aft-0"
    row rates "${method%=*}/double" "$runs/$name-double$aft-0"
    row rates "${method%=*}/fourfold" "$runs/$name-fourfold$aft-0"
done
