# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Writes docs/PARITY.md: how far this server's pictures are from AUTOMATIC1111's.

    cargo test --test golden && python3 scripts/parity_report.py

The numbers are those of the last run of the golden test (target/tmp/golden-report.tsv); samplers, schedules
and features are those of the recorded cases (compat-tests/golden).
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCHEDULE = re.compile(r"\bSchedule type: ([^,\n]+)")
FAMILIES = {
    "tiny-sd1": "SD 1.x, epsilon",
    "tiny-sd2-v": "SD 2.x, v",
    "tiny-sdxl": "SDXL",
    "tiny-sd1-inpaint": "SD 1.x, 9-channel inpainting",
}


@dataclass
class Row:
    """One recorded case as the golden test saw it."""

    name: str
    passed: bool
    pictures: int
    max: int
    mean: float
    percent: float
    bar_max: int
    bar_percent: float
    why: str


@dataclass
class Case:
    row: Row
    tags: list[str]
    model: str | None
    samplers: set[str] = field(default_factory=set)
    schedules: set[str] = field(default_factory=set)


def read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Row(
            name=line["case"],
            passed=line["state"] == "pass",
            pictures=int(line["pictures"]),
            max=int(line["max"]),
            mean=float(line["mean"]),
            percent=float(line["percent"]),
            bar_max=int(line["bar max"]),
            bar_percent=min(100.0, float(line["bar percent"])),
            why=line["what"] or "",
        )
        for line in lines
    ]


def read_cases(rows: list[Row], golden: Path) -> list[Case]:
    index = {entry["name"]: entry for entry in json.loads((golden / "index.json").read_text("utf-8"))}
    cases = []
    for row in rows:
        recorded = json.loads((golden / "cases" / f"{row.name}.json").read_text("utf-8"))
        case = Case(row, index[row.name]["tags"], index[row.name]["model"])
        info = recorded.get("info_parsed") or {}
        if name := info.get("sampler_name"):
            case.samplers.add(name)
            for text in info.get("infotexts") or []:
                case.schedules |= set(SCHEDULE.findall(text))
        cases.append(case)
    return cases


def table(title: str, groups: Iterable[tuple[str, list[Case]]]) -> list[str]:
    lines = [
        f"| {title} | cases | pass | pictures | max | mean | worst share | bar |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for label, cases in groups:
        rows = [case.row for case in cases]
        cells = [label, str(len(rows)), str(sum(row.passed for row in rows))]
        cells.append(str(sum(row.pictures for row in rows)))
        bars = [(row.bar_max, round(row.bar_percent, 1)) for row in rows]
        least, most = (tuple(extreme(column) for column in zip(*bars)) for extreme in (min, max))
        bar = " to ".join(f"{top} on {share:g} %" for top, share in dict.fromkeys([least, most]))
        mean = sum(row.mean for row in rows) / len(rows)
        share = max(row.percent for row in rows)
        cells += [str(max(row.max for row in rows)), f"{mean:.4f}", f"{share:.2f} %", bar]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def short(why: str) -> str:
    """What differs without a quoted body, and the ledger's reason."""
    what, _, reason = why.partition(" [")
    return f"{what.partition(': {')[0].strip()}. {reason.removesuffix(']')}"


def grouped(cases: list[Case], of: Callable[[Case], Iterable[str]]) -> list[tuple[str, list[Case]]]:
    """Cases by every label that `of` gives them, by name."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        for label in of(case):
            groups.setdefault(label, []).append(case)
    return [(label, groups[label]) for label in sorted(groups, key=str.lower)]


def report(cases: list[Case], missing: int) -> str:
    compared = [case for case in cases if case.row.pictures]
    pictures = sum(case.row.pictures for case in compared)
    identical = sum(case.row.max == 0 for case in compared)
    plain = [case for case in cases if not case.row.pictures]
    failing = [case for case in cases if not case.row.passed]
    lines = [
        "# Parity with AUTOMATIC1111 v1.10.1",
        "",
        "Made by `scripts/parity_report.py` from the last run of `cargo test --test golden`; not edited by hand.",
        "",
        f"{len(cases)} recorded requests, {len(cases) - len(failing)} answered as A1111 answered them.",
        f"{pictures} pictures of {len(compared)} requests were compared pixel by pixel; those of {identical} requests are identical.",
    ]
    if missing:
        lines += ["", f"This report lacks {missing} recorded requests: the run was a part of the set."]
    lines += [
        "",
        "`max` is the largest difference in grey levels (0 to 255), `mean` the mean difference over all samples,",
        "averaged over the requests, `worst share` the largest share of a picture's pixels that differ at all, `bar`",
        "what is allowed: 1 grey level on 1 % of the pixels (SDXL layout 2 %), or twice what A1111 differs from itself",
        "when it runs with another number of threads, where that is more. `pass` counts whole answers: status, JSON,",
        "infotext and pixels. Pictures whose seed the server picks are drawn once more with the recorded seed.",
        "",
        "## By sampler",
        "",
        *table("sampler", grouped(compared, lambda case: case.samplers)),
        "",
        "## By schedule that was really used",
        "",
        "`Automatic` stands for the sampler's own choice.",
        "",
        *table("schedule", grouped(compared, lambda case: case.schedules)),
        "",
        "## By kind of checkpoint",
        "",
        *table("checkpoint", grouped(compared, lambda case: [FAMILIES.get(case.model or "", "any")])),
        "",
        "## By feature",
        "",
        "A request counts for each of its tags.",
        "",
        *table("feature", grouped(compared, lambda case: case.tags)),
        "",
        "## Answers without pictures",
        "",
        "| feature | cases | pass |",
        "|---|--:|--:|",
        *(
            f"| {label} | {len(group)} | {sum(case.row.passed for case in group)} |"
            for label, group in grouped(plain, lambda case: case.tags)
        ),
        "",
        "## What differs",
        "",
        "Every one of them is listed with its reason in `compat-tests/known-differences.toml`.",
        "",
    ]
    lines += [f"- `{case.row.name}`: {short(case.row.why)}" for case in sorted(failing, key=lambda case: case.row.name)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=ROOT / "target" / "tmp" / "golden-report.tsv")
    parser.add_argument("--golden", type=Path, default=ROOT / "compat-tests" / "golden")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "PARITY.md")
    arguments = parser.parse_args()
    if not arguments.report.is_file():
        print(f"{arguments.report} does not exist; run cargo test --test golden first.", file=sys.stderr)
        return 1
    try:
        cases = read_cases(read_rows(arguments.report), arguments.golden)
    except KeyError as error:
        print(f"{arguments.report} has no {error}; run cargo test --test golden again.", file=sys.stderr)
        return 1
    index = json.loads((arguments.golden / "index.json").read_text("utf-8"))
    arguments.out.write_text(report(cases, len(index) - len(cases)), encoding="utf-8")
    passed = sum(case.row.passed for case in cases)
    print(f"{arguments.out}: {passed} of {len(cases)} requests pass")
    return 0


if __name__ == "__main__":
    sys.exit(main())
