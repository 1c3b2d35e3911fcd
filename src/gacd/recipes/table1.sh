#!/bin/sh
# Table 1: CIFAR-10, two teachers, three students.
# Preset paper: 2.1e19 operations, 119 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
pair() { # TEACHER STUDENT, both as the paper calls them, and the rate of KD and GACD if it is another one
    place cifar10 "$1" "$2"
    distil kd 0 $KD ${5-} $KD_EPOCHS
    distil ard 0 $ARD $ARD_EPOCHS
    distil gacd 0 $GACD ${5-} $GACD_EPOCHS
    finetune gacd-aft 0 gacd $AFT_EPOCHS
    row table1 "$3/$4/KD" "$runs/kd-0"
    row table1 "$3/$4/ARD" "$runs/ard-0"
    row table1 "$3/$4/GACD+AFT" "$runs/gacd-aft-0"
    row table1 "$3/$4/GACD" "$runs/gacd-0"
}
teacher cifar10 "$RESNET18_T"
teacher cifar10 "$WRN34_T"
pair "$RESNET18_T" "$RESNET18" ResNet-18 ResNet-18
pair "$RESNET18_T" "$WRN34" ResNet-18 WRN-34-10
pair "$WRN34_T" "$RESNET18" WRN-34-10 ResNet-18
pair "$WRN34_T" "$WRN34" WRN-34-10 WRN-34-10
pair "$RESNET18_T" "$MNV2" ResNet-18 MobileNetV2 "$MNV2_RATE"
pair "$WRN34_T" "$MNV2" WRN-34-10 MobileNetV2 "$MNV2_RATE"
