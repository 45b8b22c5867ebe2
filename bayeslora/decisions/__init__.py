"""From probabilities to decisions: which answers to give, which to leave to a person, and which options to name."""
