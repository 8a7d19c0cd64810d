"""Convolutions over an upsampled map concatenated with others, whose upsampled part is computed on the small map."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compress.quantize.graph import channels_of
from compress.quantize.rewrites.edit import Array, Editor, suffixed
from compress.quantize.rewrites.repeated import enlarged
from export.graph import attributes

_UP, _BESIDE = "_up", "_beside"


@dataclass(frozen=True)
class _Place:
    node: onnx.NodeProto
    small: str
    """What is upsampled."""
    channels: tuple[int, int]
    """Channels of the concatenation that come from the upsampled map: from, to."""
    others: tuple[str, ...]
    replaced: tuple[str, ...]
    """Nodes by name: the convolution, the concatenation, the upsampling."""


@dataclass(frozen=True)
class SubPixel:
    """conv3x3(concat(up2(a), b)) = up(a) + conv3x3(b), where up(a) is a 2x2 convolution of the small map.

    On a map with every pixel doubled, a 3x3 filter sees at most two rows and two columns of distinct pixels: which, and
    with which sums of its weights, depends on where in the 2x2 block the output lies. One convolution over all 2x2
    windows of the small map makes these four phases as channels. A window serves the odd row above its middle and the
    even row below, so DepthToSpace takes the phases in reverse order, and one row and one column are cut off at each
    border; the small map is padded with zeros as the large one was. 13 of 18 multiplications remain where both halves
    are equally wide, and neither the large map nor the concatenation is made.
    """

    name: str = "upsampled parts of convolutions on the small map"

    def places(self, model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        """The convolutions of a float graph, by name, and the nodes that go with them."""
        editor = Editor(model)
        channels = channels_of(model)
        found = [_place(editor, node, channels) for node in editor.nodes]
        return {place.node.name: place.replaced for place in found if place is not None}

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form."""
        editor = Editor(model)
        channels = channels_of(model)
        for node in list(editor.nodes):
            place = _place(editor, node, channels) if node.name in places else None
            if place is not None:
                _split(editor, place)
        return editor.done()


def _place(editor: Editor, node: onnx.NodeProto, channels: dict[str, int]) -> _Place | None:
    if node.op_type != "Conv" or not _is_plain_3x3(editor, node):
        return None
    concat = editor.maker(node.input[0])
    if concat is None or concat.op_type != "Concat" or editor.only_reader(concat.output[0]) is None:
        return None
    widths = [channels.get(name, 0) for name in concat.input]
    makers = [editor.maker(name) for name in concat.input]
    doubled = [
        i
        for i, maker in enumerate(makers)
        if maker is not None and enlarged(editor, maker) == (2, 2) and editor.only_reader(maker.output[0]) is not None
    ]
    known = all(widths) and sum(widths) == editor.constants[node.input[1]].shape[1]
    if attributes(concat)["axis"] != 1 or len(doubled) != 1 or len(widths) < 2 or not known:
        return None
    (index,) = doubled
    resize = makers[index]
    assert resize is not None
    start = sum(widths[:index])
    others = tuple(name for i, name in enumerate(concat.input) if i != index)
    replaced = node.name, concat.name, resize.name
    return _Place(node, resize.input[0], (start, start + widths[index]), others, replaced)


def _is_plain_3x3(editor: Editor, node: onnx.NodeProto) -> bool:
    given = attributes(node)
    weight = editor.constants.get(node.input[1])
    return (
        weight is not None
        and weight.shape[2:] == (3, 3)
        and all(name in editor.constants for name in node.input[2:] if name)
        and list(given.get("pads") or ()) == [1, 1, 1, 1]
        and set(given.get("strides") or (1,)) == {1}
        and set(given.get("dilations") or (1,)) == {1}
        and given.get("group", 1) == 1
        and given.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _split(editor: Editor, place: _Place) -> None:
    node, (start, end) = place.node, place.channels
    weight = editor.constants[node.input[1]]
    beside = np.concatenate([weight[:, :start], weight[:, end:]], axis=1)
    up, rest = (f"{node.name}/{part}" for part in ("up", "beside"))
    phases, dealt, cut, added = (f"{node.output[0]}{_UP}{part}" for part in ("_phases", "_dealt", "", "_beside"))
    given = dict(attributes(node))
    others = place.others[0]
    new = []
    if len(place.others) > 1:
        others = f"{node.output[0]}_others"
        new.append(helper.make_node("Concat", list(place.others), [others], f"{rest}/concat", axis=1))
    weight_up = editor.add(_phases(weight[:, start:end]), suffixed(node.input[1], _UP))
    weight_beside = editor.add(beside, suffixed(node.input[1], _BESIDE))
    one = editor.add(np.array([1, 1]), f"{up}/one")
    minus_one = editor.add(np.array([-1, -1]), f"{up}/minus_one")
    axes = editor.add(np.array([2, 3]), f"{up}/axes")
    new += [
        helper.make_node(
            "Conv", [place.small, weight_up], [phases], up, kernel_shape=[2, 2], pads=[1, 1, 1, 1], strides=[1, 1]
        ),
        helper.make_node("DepthToSpace", [phases], [dealt], f"{up}/dealt", blocksize=2, mode="DCR"),
        helper.make_node("Slice", [dealt, one, minus_one, axes], [cut], f"{up}/cut"),
        helper.make_node("Conv", [others, weight_beside, *node.input[2:]], [added], rest, **given),
        helper.make_node("Add", [cut, added], list(node.output), node.name),
    ]
    editor.replace(node, new)


def _phases(weight: Array) -> Array:
    """Weights [4 out, in, 2, 2] from [out, in, 3, 3]; for rows and for columns, the odd phase before the even one."""
    odd = np.stack([weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]], axis=2)
    even = np.stack([weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]], axis=2)
    rows = np.stack([odd, even])  # [row, out, in, 2, 3]
    odd = np.stack([rows[..., 0] + rows[..., 1], rows[..., 2]], axis=-1)
    even = np.stack([rows[..., 0], rows[..., 1] + rows[..., 2]], axis=-1)
    phases = np.stack([odd, even], axis=1)  # [row, column, out, in, 2, 2]
    return phases.reshape(-1, *phases.shape[3:])
