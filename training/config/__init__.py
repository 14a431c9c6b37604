"""Configurations of training runs: one file per stage, what they share, and chains of stages."""
