"""The members of an ensemble on disk."""
