"""A reference executor of Core ML ML Programs: a saved .mlpackage, op by op in torch, on any system.

`program.MilProgram` loads and runs a package; the op modules hold one function per MIL op, each registered by name in
`registry`. Semantics follow coremltools' op definitions (`coremltools/converters/mil/mil/ops/defs/iOS15 ... iOS18`).
"""
