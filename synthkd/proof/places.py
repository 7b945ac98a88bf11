"""Where Python and its packages lie, and what of a system is nobody's data."""

import functools
import importlib.metadata
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import synthkd
from synthkd.core.resources import shipped

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/System/Library")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
TERMINAL = "/dev/tty"
GPU = "/dev/nvidia"
# tables of the system: of libraries, of time zones, of settings of the C library and of OpenSSL
TABLES = (
    "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo",
    "/etc/ssl/openssl.cnf", "/etc/mime.types", "/usr/share/locale",
)  # fmt: skip
KERNEL = ("/proc", "/sys")
CODE = ("teacher", "student", "generator")  # roles of a package, whose files are told one by one
# what images and arrays end in: those inside a package are shown all the same
DATA = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2",
    ".avif", ".dcm", ".npy", ".npz", ".csv", ".gz", ".mat", ".h5", ".hdf5", ".parquet", ".arrow",
)  # fmt: skip


def inside(path: str, place: str) -> bool:
    """Whether a path is a place or lies below it, by their names.

    >>> inside("/a/b", "/a"), inside("/ab", "/a"), inside("/a", "/a")
    (True, False, True)
    """
    return path == place or path.startswith(place.rstrip("/") + "/")


@functools.cache
def interpreter_places() -> tuple[str, ...]:
    """Folders and files of the interpreter and of what is installed for it, links followed."""
    schemes = [sysconfig.get_paths()]
    schemes.append(sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_prefix}))
    found = [
        paths[kind] for paths in schemes for kind in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    found += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    found += [
        f"{prefix}/{name}" for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")
    ]
    found += [sys.executable, f"{sys.prefix}/pyvenv.cfg"]
    library = sysconfig.get_config_var("INSTSONAME")
    if library:
        found.append(f"{sysconfig.get_config_var('LIBDIR')}/{library}")
    return _there(found)


@functools.cache
def package_places() -> tuple[str, ...]:
    """Those of the interpreter, and synthkd's own: in a checkout it lies elsewhere."""
    own = Path(synthkd.__file__).parent
    return _there([*interpreter_places(), own, shipped("pipelines"), shipped("assets")])


def _there(paths: Iterable[str | Path]) -> tuple[str, ...]:
    """What is there, links followed, each once."""
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.exists(path)))  # noqa: PTH110


def distributions() -> dict[str, str]:
    """The installed distributions and their versions."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name] = distribution.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
