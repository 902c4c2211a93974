"""What the benchmark found, as Markdown."""

from __future__ import annotations

from typing import Any


def rendered(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['machine']}; commit {report['commit']}; {report['at']}; {report['rounds']} round(s);"
        f" others' load before the run {report['load_before']:.1f}",
        "",
    ]
    lines += [
        "| case | system | clients | requests/s | p50 ms | p99 ms | server µs | generator busy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["cells"]:
        per_s, busy = f"{row['per_s']:,.0f}", f"{row['generator_busy']:.0%}" if row["generator_busy"] else ""
        lines.append(
            f"| {row['case']} | {row['system']} | {row['clients']} | {per_s} | {row['p50_ms']:.2f} |"
            f" {row['p99_ms']:.2f} | {_shown(row['server_cpu_us'])} | {busy} |"
        )
    lines += ["", "| load generator against a server in C that does nothing | clients | requests/s |", "|---|---|---|"]
    lines += [f"| {row['case']} | {row['clients']} | {row['per_s']:,.0f} |" for row in report["generator_ceilings"]]
    if report["goals"]:
        lines += ["", "| ratio of this run | found | wanted | |", "|---|---|---|---|"]
    for goal in report["goals"]:
        sign, met = "≤" if goal["is_at_most"] else "≥", "met" if goal["is_met"] else "not met"
        lines.append(f"| {goal['what']} | {goal['value']:.2f} | {sign} {goal['wanted']:.2f} | {met} |")
    checked, wrong, failed = (sum(row[name] for row in report["cells"]) for name in ("checked", "wrong", "failed"))
    lines += ["", f"{checked} answers checked, {wrong} wrong; {failed} requests failed."]
    return "\n".join(lines)


def _shown(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds:,.0f}"
