"""What the user sees while a sweep runs: a line when a trial ends, and now and then a table."""

import math
from collections import Counter
from collections.abc import Sequence

from tune.records import SweepSpec, TrialRecord

_ROWS = 15
_PLACES = {"running": 0, "finished": 1, "stopped": 1}


def happened(record: TrialRecord) -> str:
    """One line about a trial that ended."""
    facts = f"{record.trial_id} {record.status} at step {record.step}"
    shown = ", ".join(f"{name}={value:.4g}" for name, value in record.values.items())
    reason = record.reason.splitlines()[0][:160] if record.reason else ""
    return ": ".join(part for part in (facts, shown, reason) if part)


def table(spec: SweepSpec, records: Sequence[TrialRecord], total: int) -> str:
    """How many trials are how; those that run, then the best of those that ended."""
    counts = Counter(record.status for record in records)
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    lines = [f"{len(records)} of {total} trials: {', '.join(parts)}"]
    metric = spec.metrics[0]
    sign = 1 if metric.mode == "min" else -1

    def order(record: TrialRecord) -> tuple[int, float]:
        value = sign * record.values.get(metric.name, math.nan)
        return _PLACES.get(record.status, 2), math.inf if math.isnan(value) else value

    rows = [("trial", "status", "step", metric.name, "seconds", "overrides")]
    for record in sorted(records, key=order)[:_ROWS]:
        value = record.values.get(metric.name)
        rows.append((
            record.trial_id, record.status, str(record.step),
            "" if value is None else f"{value:.4g}", f"{record.seconds:.0f}", _short(record),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _short(record: TrialRecord) -> str:
    """The overrides, each by the last two parts of its key."""
    texts = []
    for key, value in record.overrides.items():
        name = ".".join(key.split(".")[-2:])
        texts.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(texts)
