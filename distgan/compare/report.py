"""Writes the report folder: report.md and report.html, tables, plots, sheets and plain data.

All of it follows from what the folder keeps of runs, costs and real clips: writing it again gives
the same files.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from distgan import storage
from distgan.compare import wording
from distgan.compare.pages import to_html
from distgan.compare.plan import PLAN, Plan
from distgan.compare.plots import write_plots
from distgan.compare.real_clips import REAL_CLIPS
from distgan.compare.results import Results, as_json, collect, row
from distgan.compare.sheets import write_sheets

REPORT = "report.md"


def write_report(plan: Plan, output: str) -> str:
    """Writes everything; returns the statement with where the report lies.

    Raises:
        UserError: something saved is damaged or missing; then nothing is written.
    """
    results = collect(plan, output)
    sheets = write_sheets(results, output, storage.join(output, "sheets"))
    plots = write_plots(results, storage.join(output, "plots"))
    _write_data(results, output)
    text = _markdown(results, plots, sheets)
    _write(output, REPORT, text)
    _write(output, "report.html", to_html(text, output))
    return (
        f"{wording.statement(results)}\n\n{wording.table(results)}\n\n"
        f"report: {storage.join(output, REPORT)} (in one file with all pictures: "
        f"{storage.join(output, 'report.html')})"
    )


def _write_data(results: Results, output: str) -> None:
    """Tables and everything that the plots show, as Markdown, CSV and JSON."""
    _write(output, "table.md", wording.table(results) + "\n")
    _write(output, "table.csv", _csv(row(kind) for kind in results.kinds))
    courses = (
        {"kind": c.kind, "seed": c.seed, "step": step, "compute_s": seconds, "distance": distance}
        for kind in results.kinds
        for c in kind.courses
        for step, seconds, distance in zip(c.steps, c.compute_s, c.quality, strict=True)
    )
    _write(output, "courses.csv", _csv(courses))
    tokens = ({"kind": kind.name} | point for kind in results.kinds for point in kind.tokens)
    _write(output, "tokens.csv", _csv(tokens))
    _write(output, "results.json", json.dumps(as_json(results), indent=1, allow_nan=False))


def _markdown(results: Results, plots: Mapping[str, str], sheets: Iterable[str]) -> str:
    plan = results.plan
    meanings = "\n".join(f"- `{k.name}`: {wording.MEANINGS[k.name]}" for k in results.kinds)
    pictures = "\n\n".join(f"{text}:\n\n![{text}](plots/{name})" for name, text in plots.items())
    first, *others = sheets
    links = "\n".join(f"- [{name.removesuffix('.png')}](sheets/{name})" for name in others)
    number = len(results.kinds) * len(plan.seeds)
    return f"""# Which attention makes better videos here?

{number} small video generators were trained: {len(results.kinds)} kinds of attention, each with \
{len(plan.seeds)} random seeds, equal in everything else: data, number of parameters, settings. \
A generator learns, against a discriminator that tells real clips from generated ones, to make \
new videos like those of its training data. Attention is the part of both networks that lets \
distant places and moments of a clip know of each other. How good a generator is, is measured as \
a distance between its clips and real ones; smaller is better.

{meanings}

## What the data supports

{wording.statement(results)}

## What it does not support

{wording.limits(results)}

## The figures

{wording.table(results)}

Mean ± standard deviation over the seeds. "Time a step" and "memory" are of this device; see \
*How it was done*. A dash: no run came far enough to tell.

{wording.pairs_table(results)}

A ratio below 1 means that the first of the pair came closer to the real clips; in brackets the \
confidence interval.

## Plots

{pictures}

## Clips

Real clips, then each kind's, all from the same noise; time runs to the right. Of each kind the \
seed with the median distance is shown.

![clips of all kinds](sheets/{first})

More of each kind, all seeds:

{links}

## How it was done

{wording.method(results)}

## Files

| file | holds |
|---|---|
| `{PLAN}` | the settings of all runs |
| `runs/` | the runs, ordinary run folders (`launch.py generate --run ...` makes videos) |
| `costs/` | memory and token sweep of each kind, as measured |
| `{REAL_CLIPS}` | the real clips on the sheets |
| `table.md`, `table.csv`, `results.json` | the figures |
| `courses.csv`, `tokens.csv` | what the plots show |
| `report.html` | this report in one file |

`launch.py compare --output FOLDER --report-only` writes all of this again from `{PLAN}`, \
`runs/`, `costs/` and `{REAL_CLIPS}`: without the data set, and wherever the folder lies.
"""


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Comma-separated, with a header; numbers at full precision, None as nothing."""
    listed = list(rows)
    buffer = io.StringIO()
    if listed:
        writer = csv.DictWriter(buffer, fieldnames=list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
    return buffer.getvalue()


def _write(output: str, name: str, text: str) -> None:
    storage.write_bytes(storage.join(output, name), text.encode())
