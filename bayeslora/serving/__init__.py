"""From a finished run to answers to new questions."""
