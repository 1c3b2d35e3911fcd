#!/bin/sh
# Figures 3 and 4: differences of the logits' correlation matrices (CIFAR-100, WRN-40-2 to WRN-16-2, ARD beside GACD).
# Preset paper: 3e17 operations, 2 hours of a GPU that sustains 50 TFLOP/s; counted together with what other recipes share.
set -eu
. "$RECIPES/common.sh"
