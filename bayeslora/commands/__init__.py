"""The commands of ``bayeslora``, one a file; :mod:`bayeslora.cli` is their front door."""
