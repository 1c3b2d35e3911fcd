#!/bin/sh
# Five small networks for `benchmarks/evaluation.py --parts cascade`: gacd reproduce benchmarks/five.sh --out benchmarks/networks
set -eu
teacher=results/small/cifar10/resnet20/teacher.safetensors
quick="--model resnet8-x0.25 --data cifar10 --schedule onecycle --epochs 2"
attack="--steps 2 --step-size 5/255"
gacd train pgdat $quick $attack --lr 0.2 --out "$OUT/pgdat"
gacd train nfgsm $quick --lr 0.2 --out "$OUT/nfgsm"
gacd train trades $quick $attack --lr 0.2 --out "$OUT/trades"
gacd distill ard $quick $attack --teacher "$teacher" --temperature 1 --lr 2 --weight-decay 5e-5 --out "$OUT/ard"
gacd distill kd $quick --teacher "$teacher" --lr 0.2 --out "$OUT/kd"
