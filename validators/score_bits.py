"""Scores of 0 and 1, one per sample, as a short line of text: what a later run is paired with, sample by sample."""

from __future__ import annotations

import base64
import zlib

import numpy as np

from edgepress.targets.errors import IntegrityError
from edgepress.validators.intervals import Floats

#: Letters a line may have: about 300,000 samples of a good classifier. A reviewed file stays small.
LONGEST = 65_536


def pack(scores: Floats | None) -> str | None:
    """Scores, float64 of shape (n,), as base64 of the compressed bits; None where they are not 0 and 1, or too many."""
    if scores is None or not np.all((scores == 0) | (scores == 1)):
        return None
    text = base64.b64encode(zlib.compress(np.packbits(scores.astype(bool)).tobytes(), 9)).decode()
    return text if len(text) <= LONGEST else None


def unpack(text: str, samples: int) -> Floats:
    """The inverse of `pack`.

    Args:
        text: what `pack` gave.
        samples: how many scores it holds.

    Raises:
        IntegrityError: it does not hold that many.
    """
    size = -(-samples // 8)
    try:
        bits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise IntegrityError("the scores per sample cannot be read", str(error), "They were edited or cut: run again.") from None
    if len(bits) != size:
        raise IntegrityError(
            f"the scores per sample hold {len(bits)} bytes", f"{samples} samples take {size}", "They were edited: run again."
        )
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=samples).astype(np.float64)
