"""Numbers as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..formatting import percent
from .metrics import COLUMNS
from .protocol import JPEG

CONDITIONS = ("dataset", "convention", "chroma_subsampling")
"""What the rows of one table have in common."""
_NUMBER = re.compile(r"[*+\d., %-]*|n/a")


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a table, the first one the heading; columns of numbers lean to the right."""
    rows = list(rows)
    numeric = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    head, *lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "".join("---:|" if right else "---|" for right in numeric), *lines])


def shown(metric: str, value: float | None) -> str:
    """The value of one of `COLUMNS` with its decimals."""
    return "n/a" if value is None else f"{value:.{COLUMNS[metric].decimals}f}"


def best_in_bold(metric: str, values: Sequence[float | None]) -> list[str]:
    """Values of one of `COLUMNS` with their decimals; what is printed like the best of them is in bold."""
    texts = [shown(metric, value) for value in values]
    known = [value for value in values if value is not None]
    best = shown(metric, COLUMNS[metric].better(known)) if known else None
    return [f"**{text}**" if text == best else text for text in texts]


def groups(rows: Iterable[Mapping[str, Any]], *keys: str) -> dict[tuple, list[Mapping[str, Any]]]:
    """Rows by the values of some keys, in the order of first appearance."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def evaluation_tables(means: Iterable[Mapping[str, Any]], notes: Mapping[str, str]) -> str:
    """For every set a table in the shape of the paper's Table 1, the best value of a column in bold, and the rest.

    `means` are those of `run.summarize`, `notes`, by metric, the reasons why one was not computed.
    """
    parts = []
    for (dataset, convention, subsampling), group in groups(means, *CONDITIONS).items():
        count = max(mean["images"] for mean in group)
        title = f"### {dataset}: {count} image{'s' if count > 1 else ''}, convention `{convention}`, {subsampling}"
        parts.append(f"{title}\n\n{_table_1(group)}\n\n{_details(group)}\n")
    reasons = [f"{COLUMNS[name].label} is n/a: {reason}." for name, reason in notes.items()]
    return "\n".join([*parts, *reasons]) + ("\n" if reasons else "")


def _table_1(means: Sequence[Mapping[str, Any]]) -> str:
    methods = list(dict.fromkeys(mean["method"] for mean in means))
    columns = [["Method", *methods]]
    for (factor,), group in groups(means, "quality_factor").items():
        metrics = {mean["method"]: mean["metrics"] for mean in group}
        for name in ("psnr", "ssim", "lpips"):
            values = [metrics.get(method, {}).get(name) for method in methods]
            columns.append([f"QF {factor} {COLUMNS[name].label}", *best_in_bold(name, values)])
    return markdown(zip(*columns, strict=True))


def _details(means: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in ("psnr_8bit", "psnr_b", "ssimulacra2") if name in means[0]["metrics"]]
    head = ["QF", "Method", "gain in PSNR", "least gain", *(COLUMNS[name].label for name in names), "bits a pixel"]
    rows = [[*head, "coefficients kept", "network evaluations", "seconds"]]
    jpeg = {mean["quality_factor"]: mean["metrics"]["psnr"] for mean in means if mean["method"] == JPEG}
    for mean in means:
        factor, value = mean["quality_factor"], mean["metrics"]["psnr"]
        known = mean["method"] != JPEG and None not in (value, jpeg[factor])
        cells = [str(factor), mean["method"], f"{value - jpeg[factor]:+.2f}" if known else ""]
        cells.append(_cell(mean, "least_gain", "{:+.2f}"))
        cells += [shown(name, mean["metrics"][name]) for name in names]
        cells.append(_cell(mean, "bits_per_pixel", "{:.3f}"))
        cells.append(percent(mean["consistency"]) if mean.get("consistency") is not None else "")
        rows.append([*cells, _cell(mean, "network_evaluations", "{:.0f}"), _cell(mean, "seconds", "{:.2f}")])
    return markdown(rows)


def _cell(mean: Mapping[str, Any], name: str, form: str) -> str:
    return "" if mean.get(name) is None else form.format(mean[name])
