"""What Jenkins' xunit-2 schema asks of a JUnit file (jenkinsci/xunit-plugin, `types/model/xsd/junit-10.xsd`), as data.

No package ships the schema itself. Per element: attributes (True: required), and the elements it may hold in any order; text is allowed in
the elements that hold none but `property`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as xml

_MESSAGE = {"type": False, "message": False}
_SUITE = {"name": True, "tests": True, "failures": True, "errors": True}
_SUITE |= dict.fromkeys(("group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"), False)
ELEMENTS: dict[str, tuple[dict[str, bool], set[str]]] = {
    "testsuites": (dict.fromkeys(("name", "time", "tests", "failures", "errors"), False), {"testsuite"}),
    "testsuite": (_SUITE, {"testsuite", "properties", "testcase", "system-out", "system-err"}),
    "properties": ({}, {"property"}),
    "property": ({"name": True, "value": True}, set()),
    "testcase": (
        {"name": True, "time": False, "classname": False, "group": False},
        {"skipped", "error", "failure", "rerunFailure", "rerunError", "flakyFailure", "flakyError", "system-out", "system-err"},
    ),
    "failure": (_MESSAGE, set()),
    "error": (_MESSAGE, set()),
    "skipped": (_MESSAGE, set()),
    "system-out": ({}, set()),
    "system-err": ({}, set()),
}
_TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")


def violations(text: str) -> Iterator[str]:
    """What in a JUnit file does not follow the schema."""
    root = xml.fromstring(text.encode())
    if root.tag not in ("testsuites", "testsuite"):
        yield f"the root is {root.tag}"
    for element in root.iter():
        attributes, children = ELEMENTS[element.tag]
        yield from (f"{element.tag} has no {name}" for name, required in attributes.items() if required and name not in element.attrib)
        yield from (f"{element.tag} has {name}" for name in element.attrib if name not in attributes)
        yield from (f"{element.tag} holds {child.tag}" for child in element if child.tag not in children)
        if element.tag in ("testsuites", "testsuite") and not _TIME.fullmatch(element.get("time", "")):
            yield f"the time of {element.tag} is {element.get('time')}"
        if children and (element.text or "").strip():
            yield f"{element.tag} holds text"
