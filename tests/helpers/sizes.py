"""Sizes of the tiny random models."""

VOCABULARY = 96
HIDDEN = 64
