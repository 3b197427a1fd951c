"""Probes: what frozen features are good for, as pure functions of tensors.

Features are (N, D) floating point and labels (N,) int64 class numbers, on any device that has float64. Accuracies are
in percent.
"""
