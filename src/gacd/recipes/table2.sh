#!/bin/sh
# Table 2: CIFAR-100, two teachers, three students.
# Preset paper: 7.1e17 operations, 4 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
table=table2 images=cifar100 ard=$ARD_100
teacher cifar100 "$RESNET56_T"
teacher cifar100 "$WRN40_T"
pair "$WRN40_T" "$WRN16" WRN-40-2 WRN-16-2
pair "$RESNET56_T" "$RESNET32" ResNet-56 ResNet-32
pair "$RESNET56_T" "$WRN16" ResNet-56 WRN-16-2
pair "$WRN40_T" "$RESNET32" WRN-40-2 ResNet-32
pair "$RESNET56_T" "$MNV2_100" ResNet-56 MobileNetV2 "$MNV2_RATE"
pair "$WRN40_T" "$MNV2_100" WRN-40-2 MobileNetV2 "$MNV2_RATE"
