#!/bin/sh
# The whole path on scikit-learn's digits (8 x 8 pixels), with tiny networks: `gacd demo`, or `OUT=demo sh demo.sh`.
# Linf 0.15 breaks standard training here and leaves robust networks standing; 8/255 would break nothing.
# Students trained adversarially see each training image in 96 passes: 16 epochs of five attack steps and an update,
# or GACD's first stage and its fine-tuning with half of that each. Learning rates, ARD's temperature and GACD's k come
# from a few trials on validation images (PGD-AT 2, ARD 5, GACD more).
set -eu
OUT=${OUT:-demo}

gacd train standard --model resnet8-x0.5 --data digits --precision 32 --epochs 16 --batch-size 64 --val-every 4 \
    --lr 0.2 --schedule onecycle --out "$OUT/standard"
gacd evaluate "$OUT/standard" --eps 0.1 0.15 0.2 --chunk 120

gacd train pgdat --model resnet8 --data digits --precision 32 --epochs 16 --batch-size 64 --val-every 4 \
    --lr 0.2 --schedule onecycle --eps 0.15 --step-size 0.05 --steps 5 --out "$OUT/teacher"
gacd evaluate "$OUT/teacher" --eps 0.1 0.15 0.2 --chunk 120

gacd train pgdat --model resnet8-x0.5 --data digits --precision 32 --epochs 16 --batch-size 64 --val-every 4 \
    --lr 0.2 --schedule onecycle --eps 0.15 --step-size 0.05 --steps 5 --out "$OUT/pgdat"
gacd evaluate "$OUT/pgdat" --eps 0.1 0.15 0.2 --chunk 120

gacd distill kd --teacher "$OUT/teacher" --model resnet8-x0.5 --precision 32 --epochs 16 --batch-size 64 --val-every 4 \
    --lr 0.2 --schedule onecycle --out "$OUT/kd"
gacd evaluate "$OUT/kd" --eps 0.1 0.15 0.2 --chunk 120

gacd distill ard --teacher "$OUT/teacher" --model resnet8-x0.5 --precision 32 --epochs 16 --batch-size 64 \
    --val-every 4 --lr 1 --schedule onecycle --temperature 2 --eps 0.15 --step-size 0.05 --steps 5 --out "$OUT/ard"
gacd evaluate "$OUT/ard" --eps 0.1 0.15 0.2 --chunk 120

gacd distill gacd --teacher "$OUT/teacher" --model resnet8-x0.5 --precision 32 --epochs 8 --batch-size 64 \
    --val-every 4 --lr 0.15 --schedule onecycle --eps 0.15 --step-size 0.05 --steps 5 --out "$OUT/gacd"
gacd evaluate "$OUT/gacd" --eps 0.1 0.15 0.2 --chunk 120

gacd train pgdat --init "$OUT/gacd" --precision 32 --epochs 8 --batch-size 64 --val-every 4 \
    --lr 0.2 --schedule onecycle --eps 0.15 --step-size 0.05 --steps 5 --out "$OUT/gacd-aft"
gacd evaluate "$OUT/gacd-aft" --eps 0.1 0.15 0.2 --chunk 120
