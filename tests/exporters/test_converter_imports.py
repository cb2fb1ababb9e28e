"""What converters are kept from doing leaves them whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDES = """
import sys
from edgepress.exporters.coreml_import import coremltools
tools = coremltools()
assert tools is coremltools() and callable(tools.convert)
assert not {"sklearn", "transformers"} & set(sys.modules), "imported all the same, or left hidden"
import sklearn
"""


def test_coremltools_comes_without_other_frameworks_which_can_be_imported_later() -> None:
    for name in ("coremltools", "sklearn"):
        pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", HIDES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_functions_of_the_onnx_library_say_what_their_source_says() -> None:
    pytest.importorskip("onnxscript")
    from onnxscript.function_libs.torch_lib.ops import core

    from edgepress.exporters.onnx_library import library_unparsed

    function = core.aten_abs
    parsed = function.function_ir
    with library_unparsed():
        quick = function.function_ir
        assert type(quick) is not type(parsed)
        assert (quick.domain, quick.name) == (parsed.domain, parsed.name)
        assert [value.name for value in quick.inputs] == [value.name for value in parsed.inputs]
    assert type(function.function_ir) is type(parsed)
