"""Distil adversarial robustness from a teacher network into a smaller student."""
