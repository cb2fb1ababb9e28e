"""The licence of a checkpoint: what the recipe states, and the texts that lie beside the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

#: Beginnings of names of files that carry terms, in any case.
_TEXTS = ("license", "licence", "copying", "notice")
#: Licence keys of the Hugging Face hub that are SPDX identifiers in lower case.
_HUB = re.compile(
    r"afl-3\.0|apache-2\.0|artistic-2\.0|bsl-1\.0|bsd-[23]-clause|bsd-3-clause-clear|cc0-1\.0|ecl-2\.0|epl-[12]\.0|eupl-1\.1|isc|mit"
    r"|mpl-2\.0|ms-pl|ncsa|ofl-1\.1|osl-3\.0|postgresql|unlicense|wtfpl|zlib|cc-by-(2\.0|2\.5|3\.0|4\.0)|cc-by-sa-[34]\.0|cc-by-nc-[234]\.0"
    r"|cc-by-nd-4\.0|cc-by-nc-nd-[34]\.0|cc-by-nc-sa-[234]\.0"
)
#: Families that the hub names without saying whether later versions count.
_HUB_FAMILIES = frozenset({"AGPL-3.0", "GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0"})


def canonical(text: str) -> str:
    """A licence expression as SPDX writes it: `apache-2.0` becomes `Apache-2.0`.

    Raises:
        ValueError: it is none; the message has what to write behind a bar.
    """
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        raise ValueError(
            f"{text!r} is no licence SPDX knows|Write an SPDX identifier, e.g. Apache-2.0, or LicenseRef-NAME for terms of your own."
        ) from None


def texts(checkpoint: Path) -> tuple[Path, ...]:
    """Files beside the checkpoint that carry its terms: LICENSE, LICENCE, COPYING, NOTICE, with any ending; sorted by name."""
    found = [path for path in checkpoint.parent.iterdir() if path.name.lower().startswith(_TEXTS) and path.is_file()]
    kept = [path for path in found if path.suffix.lower() in ("", ".txt", ".md", ".rst")]
    return tuple(sorted(kept, key=lambda path: path.name))


def hub_fields(expression: str | None, files: Sequence[str]) -> dict[str, str]:
    """`license`, and where the hub has no key for it `license_name` and `license_link`, of a model card's front matter."""
    link = {"license_link": files[0]} if files else {}
    if expression is None:
        return {"license": "other", "license_name": "not-stated", **link} if files else {"license": "unknown"}
    family = expression.removesuffix("-only").removesuffix("-or-later")
    if _HUB.fullmatch(expression.lower()) or family in _HUB_FAMILIES:
        return {"license": family.lower()}
    return {"license": "other", "license_name": expression.lower().replace(" ", "-"), **link}


def cyclonedx(expression: str | None) -> list[dict[str, Any]]:
    """The `licenses` of a CycloneDX component; empty where the licence is not stated."""
    if expression is None:
        return []
    if " " in expression:
        return [{"expression": expression}]
    return [{"license": {"name": expression} if expression.startswith("LicenseRef-") else {"id": expression}}]


def sentence(expression: str | None, files: Sequence[str]) -> str:
    """What a reader has to know about the checkpoint's licence."""
    named = f", text in {', '.join(files)}" if files else "; its text was not beside the checkpoint"
    if expression is not None:
        return f"The checkpoint is under {expression}{named}. The artifacts are derived from it."
    if files:
        return f"The recipe does not state the checkpoint's licence; the terms beside it are in {', '.join(files)}."
    return "The licence of the checkpoint is unknown: the recipe has no `model.license`, and no LICENSE lies beside the checkpoint."
