"""The sweep over kinds of attention says what it left out and why, and stays within its memory."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks import attention
from tests.tiny import REPOSITORY, one_thread


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "attention", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=one_thread(), capture_output=True, text=True, check=True
    )


def figures(kind: str, tokens: int) -> dict[str, float]:
    """Made up: window is faster than dense above 1024 tokens, and 1/4 as efficient."""
    seconds = {"naive": 4.0, "dense": 2.0, "window": 2048 / tokens}[kind] * (tokens / 1024) ** 2
    flops = {"naive": 8e9, "dense": 8e9, "window": 2e9 * 1024 / tokens}[kind]
    flops *= (tokens / 1024) ** 2
    return {"forward_s": 1.0, "both_s": seconds, "flops": flops, "peak_mib": 1.0, "kept_mib": 1.0}


def test_what_needs_more_memory_than_allowed_ends_and_is_named() -> None:
    """naive at 4096 tokens stores 268 MB of weights of pairs, several times."""
    asked = ("--kinds", "naive", "--tokens", "4096", "8192", "--rounds", "1", "--memory-gib", "0.1")
    lines = run(*asked).stdout.splitlines()
    for tokens in (4096, 8192):
        assert any(
            line.startswith(f"| naive | {tokens} | left out: more than 0.1") for line in lines
        )


def test_sizes_left_out_for_their_time_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def measured(kind: str, tokens: int, arguments: Any) -> dict[str, float]:
        asked.append((kind, tokens))
        return figures(kind, tokens)

    monkeypatch.setattr(attention, "_in_own_process", measured)
    attention.main(
        ["--kinds", "naive", "dense", "--tokens", "2048", "512", "1024", "--limit-s", "3"]
    )
    said = capsys.readouterr().out
    assert "| naive | 2048 | left out: 1024 tokens took 4 s, over --limit-s |" in said
    naive, dense = ([n for k, n in asked if k == kind] for kind in ("naive", "dense"))
    assert naive == [512, 1024] and dense == [512, 1024, 2048], "the smallest first"


def test_the_summary_compares_with_dense_and_naive() -> None:
    kinds, sizes = ("naive", "dense", "window"), (512, 1024, 2048)
    found = {kind: {n: figures(kind, n) for n in sizes if n < 2048 or kind != "naive"}
             for kind in kinds}  # fmt: skip
    lines = list(attention.summary(found))
    assert "dense / naive, time: 512: 0.50, 1024: 0.50" in lines
    assert "window / dense, time: 512: 2.00, 1024: 1.00, 2048: 0.50" in lines
    assert "window / dense, useful FLOP/s: 512: 0.25, 1024: 0.25, 2048: 0.25" in lines
    assert "window is faster than dense from 2048 tokens on" in lines


def test_help_explains() -> None:
    said = run("--help").stdout
    for words in ("--memory-gib", "--limit-s", "useful", "`naive` stores", "a process of its own"):
        assert words in said
