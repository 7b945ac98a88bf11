"""The data card of a synthetic data set: README.md of its folder.

Every string that came from elsewhere is text in it, and paths lose their folders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.cards import text
from synthkd.cards.text import plain
from synthkd.core.privacy import statement
from synthkd.core.words import without_folders

LAST = 12  # powers of ten that Hugging Face has a word for


def data_card(
    manifest: Mapping[str, Any], folders: Sequence[str] = (), *, tars: str = "", licence: str = ""
) -> str:
    """The card of a data set with this manifest. `folders` are those of its classes, in their
    order, where it has any: other programs take them for the names. `tars` are the files of one
    that was exported as tar shards, in one word; `licence` is the short name of its licence."""
    teacher = plain(_teacher(manifest))
    count, read = manifest["count"], manifest["real_images_read"]
    per_class = manifest["per_class"]
    seen = "no real image was read" if not read else f"{read:,} real images were read"
    lines = [
        _header(manifest, folders, tars, licence), "",
        f"# {count:,} synthetic images, made for {teacher}", "",
        "Images that synthkd made for a trained image classifier, its teacher, each of the class "
        f"that the teacher sees in it; {seen}. They are derived from that teacher, whose licence "
        "may apply to them.", "",
        *text.findings(manifest.get("findings")),
        *text.table({
            "images": f"{count:,}, uint8, {' x '.join(map(str, _shape(manifest)))} "
            "(channels, height, width)",
            "classes": text.classes(manifest["names"], "manifest.json"),
            "images of a class": f"{min(per_class):,} to {max(per_class):,}",
            "labels": "the class asked for, which the teacher names too",
            "logits": "the teacher's answer to each image, float16",
            "teacher": teacher,
            "teacher, SHA-256": f"`{text.code(manifest['teacher_sha256'])}`",
            "real images read": f"{read:,}",
            "synthetic": "100%",
        }),
        *_made(manifest),
        *(_streaming(tars) if tars else _loading(manifest, folders)),
        "## Limits", "",
        "- Labels are the teacher's: where it is wrong, they are. An image need not look like what "
        "it is labelled as.",
        "- They are not a sample of what the teacher was trained on. Not tested as test data, and "
        "not to be used so.",
        "- Not tested for differences between groups of people.", "",
        *text.machine(manifest.get("wall_seconds"), manifest, manifest.get("peak_memory_mb")),
        "## Privacy", "", statement(read, level=manifest["promise_level"]), "",
        "## How to repeat it", "",
        "```sh", "synthkd generate --config recipe.toml --out again",
        *(["synthkd export again --format webdataset"] if tars else []), "```", "",
        f"It takes {'the recipe.toml of the data set, ' if tars else ''}the teacher of that "
        f"SHA-256, and seed {plain(manifest['seed'])}. Versions: "
        f"{text.versions(manifest)}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _teacher(manifest: Mapping[str, Any]) -> str:
    """The teacher as it was given, which its owner may have taken out."""
    return without_folders(str(manifest.get("teacher", "a teacher that is not named")))


def size_category(count: int) -> str:
    """Hugging Face's word for so many images.

    >>> [size_category(n) for n in (999, 1000, 20_000, 3_000_000)]
    ['n<1K', '1K<n<10K', '10K<n<100K', '1M<n<10M']
    """
    if count < 1000:
        return "n<1K"
    power = min(len(str(count)) - 1, LAST)
    return f"{_short(power)}<n<{_short(power + 1)}" if power < LAST else f"n>{_short(LAST)}"


def _short(power: int) -> str:
    """A power of ten: 4 is 10K."""
    return f"{10 ** (power % 3)}{' KMBT'[power // 3]}"


def _header(manifest: Mapping[str, Any], folders: Sequence[str], tars: str, licence: str) -> str:
    """The front matter: what is in it, as Hugging Face names it."""
    names = {str(k): name for k, name in enumerate(folders or manifest["names"])}
    count, read = manifest["count"], manifest["real_images_read"]
    tags = ["synthetic", "synthkd", "knowledge-distillation", *([] if read else ["data-free"])]
    split = {"split": "train", "path": "*.tar" if tars else "*/*.png"}
    return text.header({
        "pretty_name": f"{count} synthetic images for {_teacher(manifest)}",
        "license": licence or None,
        "tags": tags,
        "task_categories": ["image-classification"],
        "size_categories": [size_category(count)],
        "dataset_info": {
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": names}}},
            ],
            "splits": [{"name": "train", "num_examples": count}],
        } if not tars else None,
        "configs": [{"config_name": "default", "data_files": [split]}] if folders or tars else None,
    })  # fmt: skip


def _shape(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    """C, H, W."""
    spec = manifest["spec"]
    return spec["channels"], spec["height"], spec["width"]


def _made(manifest: Mapping[str, Any]) -> list[str]:
    """The recipe in short."""
    said = [
        f"Made by the generator {plain(manifest['generator'])}, seed {plain(manifest['seed'])}.",
        f"Of {manifest['drawn']:,} images drawn the teacher agreed with "
        f"{manifest['agreed_share']:.1%}; those of classes that were still wanted are kept.",
    ]
    trained = manifest["training"]["images"]
    if trained:
        said.insert(1, f"The generator was trained on {trained:,} images of its own first.")
    if begun := manifest["training"].get("from"):
        said.insert(1, f"It began with {plain(without_folders(str(begun)))}.")
    if missed := manifest["classes_not_filled"]:
        said.append(f"{sum(missed.values()):,} images of {len(missed):,} classes are missing.")
    return [
        "## How it was made", "", " ".join(said), "",
        *text.promise(manifest["promise_level"], manifest["promise"]),
    ]  # fmt: skip


def _streaming(tars: str) -> list[str]:
    """The lines that load one of tar shards."""
    return [
        "## How to load it", "",
        "```python",
        "import webdataset", "",
        f'data = webdataset.WebDataset("{tars}", shardshuffle=False).decode("pil")',
        'for image, label, logits in data.to_tuple("png", "cls", "logits.npy"):',
        "    print(image.size, label, logits.shape)  # a PIL image, int, float16 [K]",
        "    break",
        "```", "",
        'Or without synthkd and WebDataset, `datasets.load_dataset("webdataset", '
        'data_files="*.tar")`. classes.txt has a line for each class.', "",
    ]  # fmt: skip


def _loading(manifest: Mapping[str, Any], folders: Sequence[str]) -> list[str]:
    """The lines that load it."""
    lines = [
        "## How to load it", "",
        "```python",
        "from pathlib import Path", "", "from synthkd.data.store import open_store", "",
        'data = open_store(Path("."))  # the folder of this file',
        "print(data.pixels.shape)  # uint8 [N, C, H, W]",
        "print(data.labels.shape, data.logits.shape)  # int64 [N], float16 [N, K]",
        "```", "",
    ]  # fmt: skip
    if folders:
        empty = ", allow_empty=True" if manifest["empty_classes"] else ""
        lines += [
            "Each image is there once more as a PNG in the folder of its class, for programs that "
            "take those; its name is its row above:", "",
            "```python", "from torchvision.datasets import ImageFolder", "",
            f'folder = ImageFolder("."{empty})', "print(len(folder), folder.classes)", "```", "",
        ]  # fmt: skip
    return [*lines, "`synthkd distill --synthetic .` trains a student on it.", ""]
