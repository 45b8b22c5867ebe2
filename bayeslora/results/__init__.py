"""From predictions to files, tables and pictures, without a model."""
