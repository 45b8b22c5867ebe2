"""From a network and its questions to a curvature: Jacobians, their rows, Kronecker factors, fits that resume."""
