"""Posteriors over trainable parameters: state, sample, covariance; no Lightning in it. One family a file."""
