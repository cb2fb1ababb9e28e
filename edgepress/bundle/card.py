"""README.md of a bundle: the model card, with the numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepress.bundle.digest import loaded_bytes
from edgepress.bundle.front_matter import front_matter
from edgepress.bundle.license import sentence
from edgepress.bundle.release import Release
from edgepress.report import numbers
from edgepress.report.present import drop_unit, shown_verdict
from edgepress.report.summary import escape

Json = Mapping[str, Any]


def render_card(report: Json, entries: Sequence[Json], release: Release, layouts: Json) -> str:
    """The model card as Markdown; nothing in it depends on when or how fast the run was.

    Args:
        report: the report dictionary.
        entries: the artifacts of bundle.json.
        release: what the report does not say.
        layouts: as `edgepress.bundle.layouts.describe` returns them.
    """
    reference, unit = report["reference"], drop_unit(report)
    lines = [
        f"# {escape(report['project'])}",
        "",
        f"Verdict of the run: **{report['verdict']}**. {_absent(report, entries)}".rstrip(),
        "",
        "## What is here",
        "",
        "| Target | For | Scheme | Size | Drop (interval) | Latency ratio (interval) | Verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(item, unit) for item in entries),
        "",
        f"Drops are against the fp32 original ({escape(reference['metric']['name'])} "
        f"{numbers.metric(reference['metric']['value'], unit)} on {reference['metric']['samples']:,} samples), paired on the same samples; "
        "above zero is worse. A latency ratio is against the fp32 model in the same runtime; below one is faster. Figures hold for the "
        "machine and the data they were taken on.",
        "",
        "## Licence",
        "",
        escape(sentence(release.license, release.license_files)),
        "",
    ]
    lines += _stages(report["stages"], unit)
    for item in entries:
        lines += _section(item)
    lines += _layouts(layouts)
    lines += _using(release)
    return front_matter(report, entries, release) + "\n".join(lines) + "\n"


def _absent(report: Json, entries: Sequence[Json]) -> str:
    """Which targets have no artifact; why is left to the report, as a converter's last words may differ from run to run."""
    shipped = {item["target"] for item in entries}
    names = [target["name"] for target in report["targets"] if target["name"] not in shipped]
    return f"Not in this bundle, see the report: {escape(', '.join(names))}." if names else ""


def _row(item: Json, unit: str) -> str:
    metric, ratio = item["metric"], item["latency_ratio"]
    cells = [
        f"{item['target']}",
        item["device"],
        item["scheme"]["label"],
        numbers.size(loaded_bytes(item["size_bytes"], item["artifact"]["facts"])),
        f"{numbers.drop(metric['drop'], unit)} ({numbers.interval(metric['interval'])})" if metric else "not measured",
        f"{numbers.ratio(ratio['value'])} ({numbers.interval(ratio['interval'])})" if ratio else "not measured",
        item["verdict"],
    ]
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _stages(stages: Sequence[Json], unit: str) -> list[str]:
    """What each step made of the model; nothing where there is the original alone, or only its quantization."""
    if len(stages) < 3:
        return []
    lines = ["## What was done", "", "| Stage | Metric | Drop | Parameters | Multiply-accumulates |", "| --- | --- | --- | --- | --- |"]
    for stage in stages:
        drop = numbers.drop(stage["drop"], unit) if stage.get("drop") is not None else ""
        cells = [stage["name"], numbers.metric(stage["metric"], unit), drop, f"{stage['parameters']:,}", f"{stage['macs']:,}"]
        lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    return [*lines, ""]


def _section(item: Json) -> list[str]:
    lines = [f"## {escape(item['target'])}", "", f"- Artifact: {escape(item['folder'] + '/' + item['path'])}, sha256 {item['sha256']}"]
    lines += [f"- Also here: {escape(item['folder'] + '/' + name)}" for name in sorted(item["artifact"]["extra"])]
    for direction in ("inputs", "outputs"):
        for spec in item[direction]:
            shape = ", ".join("N" if size is None else str(size) for size in spec["shape"])
            lines.append(escape(f"- {direction[:-1].capitalize()} {spec['name']}: {spec['dtype']} [{shape}]"))
    lines.append(f"- Outputs were computed by: {escape(item['executed_by'] or 'nothing; the artifact was not executed')}")
    for name, value in sorted(item["artifact"]["facts"].items()):
        lines.append(f"- {escape(name.replace('_', ' ').capitalize())}: {escape(_text(value))}")
    preprocessing = item["preprocessing"] or "none inside the artifact; feed what the project's data code yields"
    lines.append(f"- Preprocessing: {escape(_text(preprocessing))}")
    for gate in item["verdicts"]:
        step = f" Next: {gate['next_step']}" if gate["next_step"] else ""
        lines.append(escape(f"- Gate {gate['name']}: {shown_verdict(gate)}, {gate['observed']}, limit {gate['limit']}.{step}"))
    return [*lines, ""]


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _layouts(layouts: Json) -> list[str]:
    """Where servers and registries find the artifacts; nothing where no layout was asked for."""
    if not layouts:
        return []
    lines = ["## Layouts", ""]
    for name, layout in layouts.items():
        held = f"`{layout['folder']}` with {', '.join(layout['targets'])}" if layout["targets"] else "nothing here has a place in it"
        lines.append(f"- {name}: {held}")
        lines += [escape(f"- {name} without {target}: {reason}") for target, reason in layout["left_out"].items()]
    return [*lines, ""]


def _using(release: Release) -> list[str]:
    watch = "`edgepress verify . --inputs live.npz` tells whether inputs still look like calibration's."
    return [
        "## Using it",
        "",
        "`python <target>/run.py` loads the artifact with its runtime and numpy alone, runs the golden samples and compares.",
        "",
        "`sha256sum --check SHA256SUMS` finds a changed file; `edgepress verify .` also replays the golden samples",
        "in every runtime that is here, and with `--key` checks who signed the bundle.",
        "",
        *([watch, ""] if release.statistics else []),
        "`bundle.json` says what each artifact was made from and how it was judged, `sbom.cdx.json` (CycloneDX 1.6) lists",
        "data, packages and hashes, `provenance.intoto.jsonl` is an in-toto statement (SLSA provenance v1) over every file.",
    ]
