#!/bin/sh
# CIFAR-10 on two cores: `OUT=runs/cifar10 sh cifar10.sh`, then `python benchmarks/cifar10.py runs/cifar10`.
# ResNet-8 students of a ResNet-8-x2, PGD-2 in training, at nearly equal total cost: 91 (PGD-AT), 87 (ARD) and 91 (GACD
# and its fine-tuning) student forwards an image. ARD's loss divides by the 10 classes, so its learning rate is ten times
# PGD-AT's and its weight decay a tenth: the same step otherwise.
set -eu
OUT=${OUT:-runs/cifar10}

gacd train nfgsm --model resnet8-x2 --data cifar10 --epochs 20 --lr 0.2 --schedule onecycle --out "$OUT/teacher"
gacd evaluate "$OUT/teacher"

gacd train pgdat --model resnet8 --data cifar10 --epochs 13 --lr 0.2 --schedule onecycle \
    --steps 2 --step-size 5/255 --out "$OUT/pgdat"
gacd evaluate "$OUT/pgdat"

gacd distill ard --teacher "$OUT/teacher" --model resnet8 --epochs 8 --lr 2 --weight-decay 5e-5 --schedule onecycle \
    --temperature 1 --steps 2 --step-size 5/255 --out "$OUT/ard"
gacd evaluate "$OUT/ard"

gacd distill gacd --teacher "$OUT/teacher" --model resnet8 --epochs 5 --lr 0.1 --schedule onecycle \
    --steps 2 --step-size 5/255 --out "$OUT/gacd"
gacd evaluate "$OUT/gacd"

gacd train pgdat --init "$OUT/gacd" --epochs 3 --lr 0.2 --schedule onecycle \
    --steps 2 --step-size 5/255 --out "$OUT/gacd-aft"
gacd evaluate "$OUT/gacd-aft"
