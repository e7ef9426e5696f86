"""Transposes are pushed through what does not care for the order of axes, until they meet and cancel.

With v = Transpose(v', perm) for all values v of a region of such nodes, the region computes v' as well, with its axes
renamed (`axes`). Where a value enters that a Transpose made, that one and the one to v' become one, or none; so they
do where a Transpose reads what leaves. Elsewhere one is needed. A region is rewritten only where it has fewer then.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .axes import Edit, Perm, inverse, perm_of, reordered
from .matching import is_standard, opset_of, sole_reader
from .rewriting import add_array, replace, set_names

Region = dict[ir.Node, Edit]


class PushTranspose:
    """Have fewer Transposes, by computing regions of the main graph in another order of axes.

    Cases: maps, sums and products also with constants, Concat, Split, Softmax, Pad, Slice, Resize, reductions, Squeeze.
    """

    def __call__(self, model: ir.Model) -> bool:
        """Rewrite; whether anything changed."""
        self._graph, self._opset = model.graph, opset_of(model)
        changed = False
        while self._opset >= 7 and self._improve():
            changed = True
        if changed:
            model.graph.sort()
        return changed

    def _improve(self) -> bool:
        """Rewrite the first place that is the better for it."""
        if any(self._merge(node) for node in self._graph if is_standard(node, "Transpose")):
            return True
        tried: set[tuple[frozenset[ir.Node], Perm]] = set()
        for node, perm in self._seeds():
            for region in self._regions(node, perm):
                key = (frozenset(region), perm)
                if region and key not in tried and _gain(region, perm) > 0:
                    self._rewrite(region, perm)
                    return True
                tried.add(key)
        return False

    def _merge(self, node: ir.Node) -> bool:
        """One Transpose, or none, of two behind each other."""
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        first, second = (perm_of(each) if is_standard(each, "Transpose") else None for each in (maker, node))
        if maker is None or first is None or second is None or maker.inputs[0] is None:
            return False
        order = _composed(first, second)
        if _is_identity(order) and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], maker.inputs[0])
            self._graph.remove(node, safe=True)
        elif sole_reader(maker.outputs[0]) is not None:
            node.attributes["perm"] = ir.AttrInt64s("perm", order)
            node.replace_input_with(0, maker.inputs[0])
        else:
            return False
        if not maker.outputs[0].uses() and not maker.outputs[0].is_graph_output():
            self._graph.remove(maker, safe=True)
        return True

    def _seeds(self) -> Iterator[tuple[ir.Node, Perm]]:
        """Nodes behind and ahead of a Transpose, with the order in which it vanishes."""
        for transpose in self._graph:
            perm = perm_of(transpose) if is_standard(transpose, "Transpose") else None
            if perm is None:
                continue
            for node, _ in transpose.outputs[0].uses():
                yield node, perm
            maker = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
            if maker is not None:
                yield maker, inverse(perm)

    def _regions(self, seed: ir.Node, perm: Perm) -> Iterator[Region]:
        """All that hangs together with a node; then only what follows from it without another Transpose."""
        whole = self._grow(seed, perm)
        yield whole
        yield _settled(whole, perm)

    def _grow(self, seed: ir.Node, perm: Perm) -> Region:
        region: Region = {}
        edits: dict[ir.Node, Edit | None] = {}
        waiting = [seed]
        while waiting:
            node = waiting.pop()
            if node in edits:
                continue
            edits[node] = edit = reordered(node, perm, self._opset) if node.graph is self._graph else None
            if edit is None:
                continue
            region[node] = edit
            for value in _data(node, edit):
                waiting += [reader for reader, _ in value.uses()]  # they share what is needed on the way in
                if (maker := value.producer()) is not None:
                    waiting.append(maker)
            if edit.keeps_rank:
                waiting += [reader for value in node.outputs for reader, _ in value.uses()]
        return region

    def _rewrite(self, region: Region, perm: Perm) -> None:
        entering = _entering(region)
        inside = {value for node, edit in region.items() if edit.keeps_rank for value in node.outputs}
        moved = {value: self._enter(value, perm) for value in entering}
        for node, edit in region.items():
            for index in edit.data:
                value = node.inputs[index]
                if value is not None and value in moved:
                    node.replace_input_with(index, moved[value])
            self._apply(node, edit)
        for value in inside:
            if value.shape is not None:
                value.shape = ir.Shape([value.shape[axis] for axis in inverse(perm)])
        for value in inside:
            self._leave(value, region, perm)
        for value in entering:
            maker = value.producer()
            if is_standard(maker, "Transpose") and not value.uses() and not value.is_graph_output():
                self._graph.remove(maker, safe=True)

    def _enter(self, value: ir.Value, perm: Perm) -> ir.Value:
        """What a value from outside is in the order of the region."""
        order, maker = inverse(perm), value.producer()
        if is_standard(maker, "Transpose") and (given := perm_of(maker)) is not None and maker.inputs[0] is not None:
            value, order = maker.inputs[0], _composed(given, order)
            if _is_identity(order):
                return value
        return self._transpose(value, order)

    def _leave(self, value: ir.Value, region: Region, perm: Perm) -> None:
        """Give those outside what a value of the region was."""
        outside = [use for use in value.uses() if use.node not in region or use.idx not in region[use.node].data]
        orders = [_joined(node, value, perm) for node, _ in outside]
        others = [use for use, order in zip(outside, orders, strict=True) if order is None]
        for (node, _), order in zip(outside, orders, strict=True):
            if order is not None and not _is_identity(order):
                node.attributes["perm"] = ir.AttrInt64s("perm", order)
        is_output = value.is_graph_output()
        for (node, _), order in zip(outside, orders, strict=True):  # first, or `_transpose` took one for the way back
            if order is None or not _is_identity(order):
                continue
            if node.outputs[0].is_graph_output():
                replace(node, value)
            else:
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                self._graph.remove(node, safe=True)
        if others or is_output:
            back = self._transpose(value, perm)
            for node, index in others:
                node.replace_input_with(index, back)
            if is_output:
                for index, output in enumerate(self._graph.outputs):
                    if output is value:
                        self._graph.outputs[index] = back
                value.name, back.name = back.name, value.name

    def _transpose(self, value: ir.Value, perm: Perm) -> ir.Value:
        """A Transpose of a value: one that is there, or else a new one."""
        for reader, _ in value.uses():
            if is_standard(reader, "Transpose") and reader.graph is self._graph and perm_of(reader) == perm:
                return reader.outputs[0]
        name = f"{value.name}_{''.join(map(str, perm))}"
        node = ir.node("Transpose", [value], attributes={"perm": perm})
        set_names(node, self._graph, name, name)
        output = node.outputs[0]
        output.type = value.type
        if value.shape is not None:
            output.shape = ir.Shape([value.shape[axis] for axis in perm])
        self._graph.append(node)  # the nodes are sorted in the end
        return output

    def _apply(self, node: ir.Node, edit: Edit) -> None:
        for name, given in edit.attributes.items():
            node.attributes[name] = ir.AttrInt64(name, given) if isinstance(given, int) else ir.AttrInt64s(name, given)
        for index, array in edit.constants.items():
            node.resize_inputs(max(index + 1, len(node.inputs)))
            constant = add_array(self._graph, f"{node.outputs[0].name}_{index}_reordered", array)
            node.replace_input_with(index, constant)


def _composed(first: Perm, then: Perm) -> Perm:
    """The order of one Transpose behind another."""
    return tuple(first[axis] for axis in then)


def _data(node: ir.Node, edit: Edit) -> Iterator[ir.Value]:
    for index in edit.data:
        value = node.inputs[index]
        if value is not None:
            yield value


def _entering(region: Region) -> list[ir.Value]:
    """Values that the nodes of a region read and others made, each once."""
    found = {
        value: None
        for node, edit in region.items()
        for value in _data(node, edit)
        if (maker := value.producer()) is None or maker not in region or not region[maker].keeps_rank
    }
    return list(found)


def _joined(reader: ir.Node, value: ir.Value, perm: Perm) -> Perm | None:
    """The order of a Transpose that reads what leaves, with that of the way out in it; None where it cannot be one.

    Where they cancel and the result is an output of the graph, the value gets its name: that is for one result.
    """
    given = perm_of(reader) if is_standard(reader, "Transpose") else None
    if given is None:
        return None
    order = _composed(perm, given)
    if _is_identity(order) and reader.outputs[0].is_graph_output():
        outputs = [value, *(each.outputs[0] for each, _ in value.uses() if is_standard(each, "Transpose"))]
        if sum(each.is_graph_output() for each in outputs) > 1:
            return None
    return order


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


def _gain(region: Region, perm: Perm) -> int:
    """How many Transposes fewer there are when a region is rewritten."""
    gain = 0
    for value in _entering(region):
        maker = value.producer()
        given = perm_of(maker) if is_standard(maker, "Transpose") else None
        is_private = not value.is_graph_output() and all(
            node in region and index in region[node].data for node, index in value.uses()
        )
        cancels = given is not None and given == perm
        gain += (given is not None and is_private) - (not cancels)
    for node, edit in region.items():
        for value in node.outputs if edit.keeps_rank else ():
            outside = [each for each, index in value.uses() if each not in region or index not in region[each].data]
            orders = [_joined(each, value, perm) for each in outside]
            gain += sum(order is not None and _is_identity(order) for order in orders)
            gain -= None in orders or value.is_graph_output()
    return gain


def _settled(region: Region, perm: Perm) -> Region:
    """The part of a region into which nothing enters but what the Transpose of this order made."""
    kept = dict(region)
    while True:
        makers = set(kept)
        dropped = [
            node
            for node, edit in kept.items()
            for value in _data(node, edit)
            if (maker := value.producer()) not in makers
            and not (is_standard(maker, "Transpose") and perm_of(maker) == perm)
        ]
        if not dropped:
            return kept
        for node in dropped:
            kept.pop(node, None)
