"""junit.xml: a suite per target, a case per gate, in the structure of Jenkins' xunit-2 schema.

A failed gate is a <failure>, one that could not be judged an <error>. An undecided gate is a <failure type="undecided"> too: nothing was
shown to hold, and a CI system that reads only this file must not call it green. `edgepress gate --undecided warn` (or `pass`) makes it a
<skipped>. An accepted gate is <skipped>: not measured, and said so; a waived one too, with the waiver.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as xml

from edgepress.report import numbers
from edgepress.report.facts import gate_facts, run_facts
from edgepress.report.present import TargetView, drop_unit, shown_verdict, unjudged, views

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Mapping[str, Any], undecided: str = "fail") -> str:
    """The report as JUnit XML text.

    Args:
        report: the report dictionary.
        undecided: `fail`, `warn` or `pass`: what an undecided gate counts as.
    """
    root = xml.Element("testsuites", name=_clean(f"edgepress {report['project']}"), time=f"{report['seconds']:.3f}")
    for row in views(report):
        root.append(_suite(row, report, undecided))
    if not report["targets"]:
        root.append(_empty_suite(report))
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in root)))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(row: TargetView, report: Mapping[str, Any], undecided: str) -> xml.Element:
    """One target. The order of children is the schema's: properties, then cases."""
    suite = xml.Element("testsuite", name=_clean(row.name), time=f"{row.data['seconds']:.3f}", timestamp=report["started"][:19])
    properties = xml.SubElement(suite, "properties")
    for name, value in _facts(row, report).items():
        xml.SubElement(properties, "property", name=name, value=_clean(value))
    cases = [_gate_case(row, gate, report, undecided) for gate in row.data["gates"]]
    why = unjudged(row)
    if why is not None:
        cases.insert(0, _artifact_case(row, report, why))
    _fill(suite, cases)
    return suite


def _empty_suite(report: Mapping[str, Any]) -> xml.Element:
    """A run without targets judged nothing; a file without failures would be read as green."""
    suite = xml.Element("testsuite", name="run", time="0.000", timestamp=report["started"][:19])
    case = xml.Element("testcase", classname="edgepress.run", name="targets", time="0.000")
    found = xml.SubElement(case, "error", message="the run has no target: nothing was judged", type="error")
    found.text = _clean("\n".join(run_facts(report)))
    _fill(suite, [case])
    return suite


def _fill(suite: xml.Element, cases: list[xml.Element]) -> None:
    suite.extend(cases)
    suite.set("tests", str(len(cases)))
    for total, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(total, str(sum(case.find(tag) is not None for case in cases)))


def _gate_case(row: TargetView, gate: Mapping[str, Any], report: Mapping[str, Any], undecided: str) -> xml.Element:
    case = xml.Element("testcase", classname=_clean(f"edgepress.{row.name}"), name=_clean(gate["name"]), time="0.000")
    verdict = shown_verdict(gate)
    tag = {"fail": "failure", "error": "error", "accepted": "skipped", "waived": "skipped"}.get(verdict)
    if verdict == "undecided":
        tag = "failure" if undecided == "fail" else "skipped"
    if tag is not None:
        message = f"{verdict}: {gate['observed']}, limit {gate['limit']}"
        found = xml.SubElement(case, tag, message=_clean(message), type=verdict)
        found.text = _clean("\n".join((*gate_facts(row, gate), *run_facts(report, row))))
    return case


def _artifact_case(row: TargetView, report: Mapping[str, Any], why: str) -> xml.Element:
    """A target that was not made, did not run, or that nothing judged."""
    case = xml.Element("testcase", classname=_clean(f"edgepress.{row.name}"), name="artifact", time=f"{row.data['seconds']:.3f}")
    found = xml.SubElement(case, "error", message=_clean(why), type=row.data["status"])
    found.text = _clean("\n".join((why, *run_facts(report, row))))
    return case


def _facts(row: TargetView, report: Mapping[str, Any]) -> dict[str, str]:
    data = row.data
    facts = {"verdict": row.verdict, "status": data["status"], "scheme": row.scheme, "executed_by": row.executed_by}
    if data["artifact"]:
        facts |= {"artifact": data["artifact"]["path"], "sha256": data["artifact"]["sha256"]}
        facts["size_bytes"] = str(row.loaded_bytes)
    if data["metric"]:
        facts["metric"] = f"{report['reference']['metric']['name']} {data['metric']['value']:.6g}"
        facts["drop"] = f"{data['metric']['drop']:.4g} {drop_unit(report)} [{numbers.interval(data['metric']['interval'], 4)}]"
    if data["latency_ms"]:
        facts["latency_p50_ms"] = f"{data['latency_ms']['p50']:.6g}"
    return facts


def _clean(text: str) -> str:
    """Without the characters XML 1.0 cannot carry."""
    return _NOT_XML.sub("\ufffd", text)
