"""Methods that change training: one LightningModule a file.

A file of this room names its methods in its own ``__all__``: they are imported here, and a configuration can name them
without a path.
"""

from importlib import import_module
from pkgutil import iter_modules

_files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
_methods = {name: getattr(file, name) for file in _files for name in getattr(file, "__all__", ())}
globals().update(_methods)
__all__ = sorted(_methods)
