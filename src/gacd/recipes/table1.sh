#!/bin/sh
# Table 1: CIFAR-10, two teachers, three students.
# Preset paper: 2.1e19 operations, 119 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
table=table1 images=cifar10 ard=$ARD
teacher cifar10 "$RESNET18_T"
teacher cifar10 "$WRN34_T"
pair "$RESNET18_T" "$RESNET18" ResNet-18 ResNet-18
pair "$RESNET18_T" "$WRN34" ResNet-18 WRN-34-10
pair "$WRN34_T" "$RESNET18" WRN-34-10 ResNet-18
pair "$WRN34_T" "$WRN34" WRN-34-10 WRN-34-10
pair "$RESNET18_T" "$MNV2" ResNet-18 MobileNetV2 "$MNV2_RATE"
pair "$WRN34_T" "$MNV2" WRN-34-10 MobileNetV2 "$MNV2_RATE"
