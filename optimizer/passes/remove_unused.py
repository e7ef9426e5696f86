"""What nothing reads any more leaves the model, in all its graphs."""

from __future__ import annotations

import onnx_ir as ir

from .. import storage


def remove_unused(model: ir.Model) -> bool:
    """Drop nodes and initializers that nothing reads; whether there were any.

    The pass of onnx-ir looks for initializers in the main graph alone, but branches and bodies of loops have their own.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    modified = RemoveUnusedNodesPass()(model).modified
    for graph in storage.graphs(model):
        kept = {*graph.inputs, *graph.outputs}
        unread = [name for name, value in graph.initializers.items() if not value.uses() and value not in kept]
        for name in unread:
            del graph.initializers[name]
        modified |= bool(unread)
    return modified
