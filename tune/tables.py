"""A sweep's trials as tables: CSV for programs, Markdown for eyes, text for a terminal."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tune.ranking import Candidate
from tune.records import SweepSpec, TrialRecord

CSV, MARKDOWN = "trials.csv", "trials.md"
_REASON_WIDTH = 60


def as_csv(spec: SweepSpec, candidates: Sequence[Candidate]) -> str:
    """A line a trial, best candidates first, with every field and every hyperparameter."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = _keys(candidates)
    metrics = [metric.name for metric in spec.metrics]
    writer.writerow(["rank", "trial", "group", "seed", "status", "reason", "step", "seconds",
                     "parent", *metrics, *keys])  # fmt: skip
    for place, candidate, trial in _rows(candidates):
        writer.writerow(
            [place, trial.trial_id, trial.group, trial.seed, trial.status, trial.reason, trial.step,
             trial.seconds, trial.parent, *(trial.values.get(name, "") for name in metrics),
             *(candidate.settings[key] for key in keys)]
        )  # fmt: skip
    return buffer.getvalue()


def as_markdown(spec: SweepSpec, candidates: Sequence[Candidate]) -> str:
    """The same, rounded, as a Markdown table."""
    header, rows = _readable(spec, candidates)
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def as_text(spec: SweepSpec, candidates: Sequence[Candidate]) -> str:
    """The same in columns; hyperparameters without the sections that they share."""
    header, rows = _readable(spec, candidates)
    header = [name.rpartition(".")[2] if "." in name and "/" not in name else name
              for name in header]  # fmt: skip
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def counts(candidates: Sequence[Candidate]) -> str:
    """Such as "12 trials: 9 finished, 2 diverged, 1 failed"."""
    statuses = Counter(trial.status for candidate in candidates for trial in candidate.trials)
    total = sum(statuses.values())
    return f"{total} trial{'' if total == 1 else 's'}: " + (
        ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "none yet"
    )


def _keys(candidates: Sequence[Candidate]) -> list[str]:
    return list(candidates[0].settings) if candidates else []


def _rows(candidates: Sequence[Candidate]) -> Iterator[tuple[int | str, Candidate, TrialRecord]]:
    for place, candidate in enumerate(candidates, start=1):
        for trial in candidate.trials:
            yield "" if candidate.state == "unranked" else place, candidate, trial


def _readable(
    spec: SweepSpec, candidates: Sequence[Candidate]
) -> tuple[list[str], list[list[str]]]:
    metrics, keys = [metric.name for metric in spec.metrics], _keys(candidates)
    header = ["rank", "trial", "status", "step", "seconds", *metrics, *keys, "reason"]
    rows = []
    for place, candidate, trial in _rows(candidates):
        values = [number(trial.values.get(name)) for name in metrics]
        settings = [number(candidate.settings[key]) for key in keys]
        facts = [trial.trial_id, trial.status, str(trial.step), f"{trial.seconds:.0f}"]
        rows.append([str(place), *facts, *values, *settings, _shortened(trial.reason)])
    return header, rows


def number(value: Any) -> str:
    """A value for people: floats with four digits, nothing as nothing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _shortened(reason: str) -> str:
    words = " ".join(reason.split())
    return words if len(words) <= _REASON_WIDTH else words[: _REASON_WIDTH - 3] + "..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
