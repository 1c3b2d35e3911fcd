#!/bin/sh
# Table 3: the teachers.
# Preset paper: 3.5e18 operations, 19 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
one() { # DATA TEACHER, and as the paper calls it
    teacher "$1" "$2"
    row table3 "$3" "$OUT/$1/$2/teacher"
}
one cifar10 "$RESNET18_T" ResNet-18
one cifar10 "$WRN34_T" WRN-34-10
one cifar100 "$RESNET56_T" ResNet-56
one cifar100 "$WRN40_T" WRN-40-2
