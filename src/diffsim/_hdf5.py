"""HDF5 files that others wrote: one may point into other files, and claim more than it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import ConfigError
from ._files import unreadable

if TYPE_CHECKING:
    import h5py

# A deflate stream of n bytes holds at most 1032 n; the filters here can shrink data no further.
MOST_COMPRESSION = 1040
LARGEST = 2**32  # bytes that an array may claim
_KNOWN_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf
_UNWRITTEN = 2**24  # bytes that an array may claim without having them: all are the fill value
_FAULTS = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)


class RefusedError(Exception):
    """The file holds what is not read; the text says what."""


@contextmanager
def opened(path: str | os.PathLike[str], key: str = "file") -> Iterator[h5py.File]:
    """The file at `path`, to be read; what HDF5 says of a damaged one, and a `RefusedError`, is a
    `ConfigError` about `key`."""
    import h5py

    path = Path(path)
    try:
        if (cause := unreadable(path)) is not None:
            raise RefusedError(cause)
        with h5py.File(path, "r") as file:
            yield file
    except ConfigError:
        raise
    except RefusedError as error:
        raise ConfigError(f"{str(path)!r} {error}", key=key) from None
    except (*_FAULTS, AttributeError, SystemError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        cause = f"{str(path)!r} cannot be read: {line[:200]}"
        raise ConfigError(cause, key=key) from None


def item(parent: Any, name: str) -> Any:
    """What `parent` holds under `name`; links, which may lead elsewhere, are refused."""
    import h5py

    link = parent.get(name, getlink=True)
    if link is None:
        raise RefusedError(f"holds no {name!r}")
    if not isinstance(link, h5py.HardLink):
        raise RefusedError(f"{parent.name}/{name} is a link: data must lie in the file itself")
    return parent[name]


def check_array(dataset: Any, limit: int = LARGEST, unwritten: int = 0) -> int:
    """The bytes of an array of numbers that lie in its own file and are as many as it says.

    Raises `RefusedError` for external and virtual storage, for filters that are not known, and for
    claims over `limit`, or over what the storage can hold by more than `unwritten`.
    """
    name = dataset.name
    if dataset.is_virtual or dataset.external:
        raise RefusedError(f"{name} keeps its data in another file")
    if dataset.dtype.kind not in "iufb":
        raise RefusedError(f"{name} holds {dataset.dtype}, not numbers")
    return _check_claim(dataset, limit, unwritten)


def check_file(file: Any, claims: bool = False) -> None:
    """Everything below: no link out of the file and no array elsewhere; with `claims`, no array
    that says to be larger than it can. For files that another library reads, or that are written
    to."""
    import h5py

    for name, link in _links(file):
        if isinstance(link, h5py.ExternalLink):
            raise RefusedError(f"keeps {name!r} elsewhere: it is a link to another file")
        found = file.get(name) if isinstance(link, h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset):
            continue
        if found.is_virtual or found.external:
            raise RefusedError(f"keeps {name!r} elsewhere: in another file")
        if claims and found.dtype.kind in "iufb":
            _check_claim(found, 2**62, _UNWRITTEN)


def _links(file: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    file.visititems_links(lambda name, link: found.append((name, link)))
    return found


def _check_claim(dataset: Any, limit: int, unwritten: int) -> int:
    name, size = dataset.name, dataset.dtype.itemsize
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= _KNOWN_FILTERS:
        cause = f"{name} is packed in a way that is not read (HDF5 filters {sorted(filters)})"
        raise RefusedError(cause)
    claimed, chunk = size * _count(dataset.shape), size * _count(dataset.chunks)
    stored = min(dataset.id.get_storage_size(), os.path.getsize(dataset.file.filename))
    if claimed > max(unwritten, stored * (MOST_COMPRESSION if filters else 1)):
        raise RefusedError(f"{name} claims {claimed} bytes, more than the file can hold")
    if max(claimed, chunk) > limit:
        most = max(claimed, chunk)
        raise RefusedError(f"{name} claims {most} bytes, over the limit of what is read")
    return claimed


def _count(shape: tuple[int, ...] | None) -> int:
    """The product in whole numbers: that of NumPy's would wrap around."""
    product = 1
    for length in shape or ():
        product *= int(length)
    return 0 if shape is None else product
