"""Contact sheets of a run: the first and the latest images of a stage, at the end the memory's."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_runs import main

SHORT = shlex.split(
    "distill --student resnet8-w4 --images-seen 512 --training.batch 32 --run.threads 1 --quiet "
    "--stage.refine.synthesis-steps 2 --stage.refine.synthesis-batch 32 --stage.refine.fresh 32 "
    "--stage.draw.fresh 256"
)


@pytest.mark.slow
def test_refined_images_have_sheets_too_and_the_memory_has_one(tmp_path: Path):
    main([*SHORT, "--out", str(tmp_path / "run")])
    names = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert names == {
        "draw-first.png", "draw-latest.png", "refine-first.png", "refine-middle.png",
        "refine-latest.png", "memory.png", "hardest.png", "disagreed.png",
    }  # fmt: skip
    sheets = {
        name: np.asarray(Image.open(tmp_path / "run" / "samples" / name).convert("L"))
        for name in names
    }
    assert not np.array_equal(sheets["draw-first.png"], sheets["refine-first.png"])
    height = sheets["memory.png"].shape[0]
    assert height == pytest.approx(10 * 2 * (16 + 2), abs=8)  # a row for each class


def test_a_file_of_python_without_a_callable_is_asked_for_one(tmp_path: Path, capsys):
    (tmp_path / "net.py").write_text(
        "print('run')\ndef make(): pass\nclass Net: pass\ndef _x(): pass"
    )
    for word in ("distill --teacher", "inspect", "distill --student"):
        with pytest.raises(SystemExit) as stop:
            main([*word.split(), str(tmp_path / "net.py")])
        assert stop.value.code == 2
        printed = capsys.readouterr()
        assert "'make', 'Net'" in printed.err and "run" not in printed.out.split()
        assert printed.err.count("\n") == 1
