#!/bin/sh
# Table 4: a linear classifier for other images on frozen features: of the teacher, and of students from CIFAR-10.
# Preset paper: 1.7e18 operations, 9 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
teacher cifar10 "$RESNET18_T"
place cifar10 "$RESNET18_T" "$RESNET18" "$OUT/claim"
train pgdat 0 $PGDAT $PGDAT_EPOCHS
distil kd 0 $KD --cost-of "$runs/pgdat-0"
distil ard 0 $ARD --cost-of "$runs/pgdat-0"
distil gacd 0 $GACD $GACD_FIRST

transfer() { # RUN DATA, and the row's name
    run=$OUT/transfer/$3-$2
    case " $TARGETS " in *" $2 "*)
        gacd probe "$1" --data "$2" --size 32 --select natural --out "$run"
        gacd evaluate "$run" $TRANSFER ;;
    esac
    row table4 "$2/$3" "$run"
}
for target in stl10 cifar100; do # the paper's two, run if they are among the preset's
    transfer "$guide" "$target" Teacher
    transfer "$runs/kd-0" "$target" KD
    transfer "$runs/ard-0" "$target" ARD
    transfer "$runs/gacd-0" "$target" GACD
done
for target in $TARGETS; do
    transfer "$runs/pgdat-0" "$target" PGD-AT
done
