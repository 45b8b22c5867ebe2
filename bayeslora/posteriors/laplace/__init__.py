"""Laplace posteriors: the curvature of the likelihood at the weights a run has found, in several structures."""
