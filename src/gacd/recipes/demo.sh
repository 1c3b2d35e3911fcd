#!/bin/sh
# The whole path on scikit-learn's digits (8 x 8 pixels), with tiny networks: `gacd demo`, or `OUT=demo sh demo.sh`.
# Linf 0.15 breaks standard training here and leaves robust networks standing; 8/255 would break nothing.
# Adversarially trained students see each training image in 96 passes: 16 epochs of 5 attack steps and an update,
# or GACD's first stage and its fine-tuning with half of that each.
set -eu
OUT=${OUT:-demo}

