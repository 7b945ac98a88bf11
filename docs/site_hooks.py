"""What the site has besides the pages in docs/: the documents of the repository's root, the files
that pages link to, and a page of reference for every package, from its docstrings."""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def packages() -> list[str]:
    """synthkd's packages and modules at its top, each of which has a page."""
    found = [path for path in (ROOT / "synthkd").iterdir() if path.name[0] != "_"]
    modules = [p.stem for p in found if p.suffix == ".py"]
    return sorted(modules + [p.name for p in found if (p / "__init__.py").exists()])


def members(package: str) -> list[str]:
    """The package and its modules, dotted, those of its packages too."""
    folder = ROOT / "synthkd" / package
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    parts = [p.relative_to(ROOT).with_suffix("").parts for p in paths]
    names = [p[:-1] if p[-1] == "__init__" else p for p in parts]
    return sorted(".".join(name) for name in names if not any(n[0] == "_" for n in name))


def examples() -> list[Path]:
    """The programs in examples/."""
    return sorted((ROOT / "examples").glob("*.py"))


def _example(path: Path) -> str:
    """A page with the text of an example."""
    title = path.stem.replace("_", " ").capitalize()
    return f"# {title}\n\n`examples/{path.name}`\n\n```python\n{path.read_text('utf-8')}```\n"


def on_config(config: Any) -> Any:
    """Fills the parts of the navigation that follow the files."""
    pages = [{f"synthkd.{name}": f"reference/{name}.md"} for name in packages()]
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    records = [f"decisions/{path.name}" for path in decisions]
    for part in config.nav:
        if "Reference" in part:
            part["Reference"] = [{"synthkd": "reference/index.md"}, *pages]
        if "Examples" in part:
            part["Examples"] = [f"examples/{path.stem}.md" for path in examples()]
        for inner in part.get("Project", []):
            if "Decisions" in inner:
                inner["Decisions"] = records
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what is made or lies outside docs/."""

    def add(uri: str, content: str) -> None:
        files.append(File.generated(config, uri, content=content))

    for name in DOCUMENTS:
        add(f"project/{name}", (ROOT / name).read_text(encoding="utf-8"))
    for path in sorted((ROOT / "pipelines").glob("*.toml")):
        add(f"files/pipelines/{path.name}", path.read_text(encoding="utf-8"))
    for path in examples():
        add(f"examples/{path.stem}.md", _example(path))
    listed = []
    for name in packages():
        whole, *parts = members(name)
        blocks = [
            f"::: {whole}\n    options:\n      heading_level: 1",
            *(f"::: {m}" for m in parts),
        ]
        add(f"reference/{name}.md", "\n\n".join(blocks) + "\n")
        first = griffe.visit(f"synthkd.{name}", _file(name), _file(name).read_text("utf-8"))
        said = first.docstring.value.split("\n\n")[0].replace("\n", " ") if first.docstring else ""
        listed.append(f"| [`synthkd.{name}`]({name}.md) | {said} |")
    add("reference/index.md", INDEX + "\n".join(listed) + "\n\n::: synthkd\n")
    return files


INDEX = """# Reference

Every public name of the package, from its docstrings. Shapes are letters: B batch, C H W image, K
classes, D features, Z latent, N images of a set.

| package | what it is for |
|---|---|
"""


def _file(name: str) -> Path:
    folder = ROOT / "synthkd" / name
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to their copies on the site; what has none is named."""
    here = page.file.src_uri
    if here == "settings.md" or here.startswith("bench/"):
        page.meta["hide"] = ["toc"]  # a single wide table
    place = "" if here.startswith("project/") else "docs"
    base = posixpath.join(place, posixpath.dirname(here)) if place else ""

    def led(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(base, path))
        if place and not wanted.startswith("../") and wanted.startswith("docs/"):
            return match[0]
        copies = (
            wanted.removeprefix("docs/"), f"project/{wanted}", f"files/{wanted}",
            f"reference/{wanted.removeprefix('synthkd/')}.md", f"{wanted.removesuffix('.py')}.md",
        )  # fmt: skip
        for uri in copies:
            if files.get_file_from_path(uri):
                there = posixpath.relpath(uri, posixpath.dirname(here))
                return f"{image}[{text}]({there}{'#' + anchor if anchor else ''})"
        return text

    return LINK.sub(led, markdown) if re.search(r"\]\(", markdown) else markdown


class Docstrings(griffe.Extension):
    """Examples and formulas in docstrings as blocks of code; the comment behind a field of a class
    as its docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring is None and obj.is_attribute and obj.parent and obj.parent.is_class:
            comment = obj.source.partition("  # ")[2].strip()
            if comment and "\n" not in comment and not comment.startswith(("type:", "noqa")):
                obj.docstring = griffe.Docstring(comment, parent=obj)
        elif obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring with its examples and its indented formulas in fences.

    >>> fenced("The sum.\\n\\n    a + b")
    'The sum.\\n\\n```text\\na + b\\n```'
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith(">>>"):
            block = f"```pycon\n{block.strip()}\n```"
        elif block.startswith("    "):
            lines = [line.removeprefix("    ") for line in block.split("\n")]
            if blocks and blocks[-1].startswith("```text"):
                block = blocks.pop().removesuffix("\n```") + "\n\n" + "\n".join(lines) + "\n```"
            else:
                block = "```text\n" + "\n".join(lines) + "\n```"
        blocks.append(block)
    return "\n\n".join(blocks)
