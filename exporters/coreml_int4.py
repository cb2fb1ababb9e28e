"""Linear layers with 4-bit weights in Core ML: a `constexpr_blockwise_shift_scale` constant (iOS 18) that a `linear` reads."""

from __future__ import annotations

from typing import Any

import numpy as np


def register() -> None:
    """Teach coremltools' torch.export front end the op `edgepress::int4_linear`; idempotent."""
    from coremltools.converters.mil.frontend.torch import register_torch_op
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known

    def int4_linear(context: Any, node: Any) -> None:
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        x, *constants = (None if name is None else context[name] for name in node.inputs)
        integers, scale, zero = (value.val for value in constants[:3] if value is not None)
        bias = constants[3].val if len(constants) > 3 and constants[3] is not None else None
        weight = mb.constexpr_blockwise_shift_scale(
            data=integers.astype(types.np_uint4_dtype),
            scale=scale.astype(np.float32),
            offset=zero.astype(types.np_uint4_dtype),
        )
        context.add(mb.linear(x=x, weight=weight, name=node.name, **({} if bias is None else {"bias": bias})))

    name = "edgepress::int4_linear"
    if name not in known.name_to_func_mapping:
        int4_linear.__name__ = name
        register_torch_op(int4_linear)
