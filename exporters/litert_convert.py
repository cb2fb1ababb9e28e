"""From a torch module to the bytes of a .tflite file with litert-torch: names kept, batch fixed, nothing on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node

from edgepress.exporters.decompositions import written_out
from edgepress.exporters.litert_barriers import keep_float
from edgepress.exporters.litert_clips import round_clips
from edgepress.exporters.litert_decompositions import joins, margins, without_kernel
from edgepress.exporters.litert_indexing import lower_indexing
from edgepress.exporters.litert_one_dimension import convolve_in_two
from edgepress.exporters.litert_pools import convolve_averages, pools
from edgepress.exporters.litert_products import keep_transposed
from edgepress.exporters.litert_transposed import lower_transposed
from edgepress.exporters.litert_transposed_volumes import convolve_planes
from edgepress.exporters.litert_windows import convolve_grids
from edgepress.exporters.programs import graphs_known, program_of
from edgepress.exporters.resizing import resizing
from edgepress.targets.nouns import Signature


def to_tflite(module: GraphModule, signature: Signature, samples: Sequence[np.ndarray], batch: int, *, quantized: bool) -> bytes:
    """Convert a module.

    The batch is fixed: a converted dynamic batch runs at 1 only (XNNPACK refuses to reshape a residual CNN) and transformers do
    not convert with one at all (litert-torch 0.10).

    Args:
        module: float, or with `quantized_decomposed` nodes in int8 whose weights are not folded; positional inputs.
        signature: names of inputs and outputs.
        samples: for each input an array (n, ...), for tracing.
        batch: the fixed batch.
        quantized: the module has quantize/dequantize nodes that are to become integer kernels.

    Returns:
        The file. Floats stay float at its boundary; 64-bit inputs and outputs are 32-bit in it.
    """
    arguments = {spec.name: torch.from_numpy(sized(sample, batch).copy()) for spec, sample in zip(signature.inputs, samples, strict=True)}
    with quiet(), torch.no_grad():
        import litert_torch
        from litert_torch import fx_infra

        fx_infra.decomp.update_pre_convert_decomp(without_kernel())
        program = program_of(module, tuple(arguments.values()), dynamic=False, names=signature)
        program = written_out(program, resizing(centres=True) | pools() | margins())
        if quantized:
            program = written_out(program, joins())
        fixed = lower_indexing(program)
        if quantized:
            fixed = convolve_averages(round_clips(fixed))
        fixed = keep_transposed(convolve_grids(convolve_in_two(lower_transposed(convolve_planes(fixed)))))
        _lay_out(fixed)
        if quantized:
            keep_float(fixed)
        with _strict(), _layouts_apart(), graphs_known():
            model = litert_torch.convert(fixed, sample_kwargs=arguments, quant_config=_static() if quantized else None)
        return bytes(model.model_content())


def _lay_out(module: GraphModule) -> None:
    """Store tensors in the order of their dimensions, each in memory of its own.

    The converter knows a tensor again by its address in memory, also that of the copy it makes of one in another order, which is free for
    the next copy afterwards: transposed weights of one shape became one.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()


class _StrictExtension:
    """The converter's C++ extension with `strict_qdq_mode` on, a setting that `litert_torch.convert` does not pass on."""

    def __init__(self, extension: Any) -> None:
        self._extension = extension

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)

    def ConvertToTFLConfig(self) -> Any:
        config = self._extension.ConvertToTFLConfig()
        config.strict_qdq_mode = True
        return config


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Ops without quantize nodes of their own stay float; else the converter gives them a neighbour's scale, which clips."""
    from litert_torch._convert import litert_converter

    extension = litert_converter.converter_api_ext
    litert_converter.converter_api_ext = _StrictExtension(extension)
    try:
        yield
    finally:
        litert_converter.converter_api_ext = extension


@contextlib.contextmanager
def _layouts_apart() -> Iterator[None]:
    """Every node keeps its own layout where the converter puts a transpose beside a quantize/dequantize pair.

    It gives the nodes around such a transpose one dictionary of facts, in which it then writes the layout behind it: other readers of
    the value before it took that for theirs, and met the value with its dimensions in another order.
    """
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.pass_body import OptimizeLayoutTransposesPass as Pass

    def apart(insert: Any) -> Any:
        @wraps(insert)
        def inserted(self: Any, graph: Graph, source: Node, *others: Any) -> list[Node]:
            facts = source.meta
            nodes: list[Node] = insert(self, graph, source, *others)
            source.meta = facts
            for node in nodes:
                node.meta = dict(node.meta)
            return nodes

        return inserted

    originals = {name: getattr(Pass, name) for name in ("insert_t_q_dq", "insert_dq_t_q")}
    for name, original in originals.items():
        setattr(Pass, name, apart(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Pass, name, original)


def _static() -> object:
    """Tells the converter that quantize/dequantize pairs mean integer kernels; the scales are those of the graph."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))


def sized(sample: np.ndarray, batch: int) -> np.ndarray:
    """The first `batch` samples, repeated where there are fewer."""
    return sample[np.arange(batch) % len(sample)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What converters print (from Python and from C++) goes to stderr; stdout stays for data. Their deprecation warnings are dropped."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
