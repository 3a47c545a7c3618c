"""diffsim: fit anything inside a simulation to anything measured on it, through the trajectory.

Every public name loads on first use, so that `import diffsim` is quick and loads no jax. The names,
and the modules they come from, are listed in `__init__.pyi`, which serves type checkers too.
"""

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("diffsim")
    return _load(name)
