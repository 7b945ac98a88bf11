"""Files that ship with the package: pipelines and assets."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent.parent  # synthkd/


def shipped(kind: str) -> Path:
    """The folder of shipped files of one kind, `pipelines` or `assets`.

    In an installed wheel they lie in `synthkd/_data`, in a checkout beside the package.
    """
    installed = _HERE / "_data" / kind
    return installed if installed.is_dir() else _HERE.parent / kind
