"""`synthkd export` of a synthetic data set: tar shards that other programs stream."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synthkd.cards.data import data_card
from synthkd.commands.display import Display
from synthkd.core import files
from synthkd.core.errors import InputError, plain, quoted
from synthkd.core.words import span
from synthkd.data.store import open_store
from synthkd.export import webdataset
from synthkd.export.webdataset import TarShard

FORMAT = "webdataset"


def export_images(path: Path, out: Path | None, licence: str, display: Display) -> dict[str, Any]:
    """Writes a data set as tar shards, with its card, into a folder beside it. Every file of the
    data set is compared with its SHA-256 first. Returns what was written."""
    store = open_store(path, verify=True)
    folder = out or files.free_name(path.resolve().with_name(f"{path.resolve().name}-{FORMAT}"))
    if path.resolve() in folder.resolve().parents:
        raise InputError(f"--out {quoted(folder)}: inside the data set it would become a class")
    tars = webdataset.pattern(len(store.shards))
    try:
        card = data_card(store.manifest, tars=tars, licence=licence)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{quoted(path)}: its manifest.json is damaged") from None
    begun, written = time.monotonic(), 0

    def wrote(shard: TarShard) -> None:
        nonlocal written
        written += shard.count
        left = (time.monotonic() - begun) * (len(store) - written) / written
        display.say(
            f"{shard.name}: {shard.count:,} images" + (f", {span(left)} left" if left >= 1 else "")
        )

    files.claim(folder)
    try:
        with files.disk(folder):
            shards = webdataset.write_tars(store, folder, wrote)
            names = "".join(f"{plain(name)}\n" for name in store.names)
            files.write_atomic(folder / "classes.txt", names)
            files.write_atomic(folder / "README.md", card)
            result = {
                "format": FORMAT, "count": len(store), "classes": list(store.names),
                "shards": [asdict(shard) for shard in shards],
            }  # fmt: skip
            files.write_json(folder / "export.json", result)  # it travels, so it names no folder
    except BaseException:  # no half of an export
        shutil.rmtree(folder)
        raise
    display.say(f"{len(store):,} images exported to {folder}")
    return {**result, "folder": str(folder)}
