"""`synthkd verify`: whether a run is as it was left, and what it shows of what it read."""

import json
from pathlib import Path
from typing import Any

from synthkd.commands.display import Display
from synthkd.jobs import verification
from synthkd.proof.levels import LEVELS

EXIT_DIFFERS = 1


def run(
    path: Path, *, digest: str = "", rerun: bool = False, trust_code: bool = False,
    as_json: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Checks a run directory or a data set; a line for each difference, and exit code 1 where there
    is one. Returns what was found."""
    found = verification.verify(path, digest=digest)
    data = found.as_data()
    if rerun:
        other = verification.rerun(path, trust_code=trust_code)
        data["rerun"] = "differs" if other else "equal"
        if other:
            data["verified"] = False
            data["findings"].append({"code": other.code, "seen": other.seen})
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        _show(data)
    if not data["verified"]:
        raise SystemExit(EXIT_DIFFERS)
    return data


def _show(data: dict[str, Any]) -> None:
    for finding in data["findings"]:
        print(f"differs: {finding['seen']}")
    for note in data["notes"]:
        print(note)
    rows = [
        ("files as they were", f"{data['files']:,}, {data['bytes']:,} bytes"),
        ("proof", f"level {data['proof_level']}, {LEVELS[data['proof_level']]}"),
        *(("no higher, because", reason) for reason in data["proof_not_higher"]),
        *([("run again", f"the student is {data['rerun']}")] if "rerun" in data else []),
        ("digest", data["digest"]),
    ]
    title = "verified" if data["verified"] else "not as it was left"
    Display().table(title, ("what", "value"), rows)
