"""Saved weights and context models that are damaged, foreign or hostile: a clear error, and never a crash."""

from __future__ import annotations

import os
import random
import struct

import numpy as np
import onnx
import pytest
from child import Child
from contexts import compiled, feeds_of, nbits_model, run
from onnxpress import ep
from sessions import options

HEADER = 64
OFFSETS = {"magic": 0, "byte_order": 8, "format": 12, "file_size": 16, "index_offset": 24, "index_size": 32}
OFFSETS |= {"index_hash": 40, "nodes": 48, "identity": 56}
WORD = (1 << 64) - 1


def hash_of(data):
    """As ep/hash.cc has it."""

    def mix(state, word):
        state = (state ^ word) * 0x9E3779B97F4A7C15 & WORD
        return state ^ state >> 32

    lanes = [1, 2, 3, 4]
    for at in range(0, len(data), 32):
        words = struct.unpack("=4Q", data[at : at + 32].ljust(32, b"\0"))
        lanes = [mix(lane, word) for lane, word in zip(lanes, words, strict=True)]
    result = mix(0, len(data))
    for lane in lanes:
        result = mix(result, lane)
    return mix(result, 0)


@pytest.fixture
def saved(tmp_path):
    return compiled(tmp_path, nbits_model(bias="constant", zero_points="packed"))


def refused(context, match, **given):
    with pytest.raises(Exception, match=match):
        ep.session(context, options(), **given)


def signed(data, **changes):
    """A file with other fields in its header, and hashes that fit."""
    data = bytearray(data)
    for name, value in changes.items():
        struct.pack_into("=I" if name in ("byte_order", "format") else "=Q", data, OFFSETS[name], value)
    if "index_hash" not in changes:
        (offset,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
        struct.pack_into("=Q", data, OFFSETS["index_hash"], hash_of(bytes(data[offset:])))
    struct.pack_into("=Q", data, OFFSETS["identity"], hash_of(bytes(data[: OFFSETS["identity"]])))
    return bytes(data)


def change(context, **attributes):
    """Other attributes of the EPContext nodes."""
    proto = onnx.load(context)
    for node in proto.graph.node:
        if node.op_type == "EPContext":
            kept = [a for a in node.attribute if a.name not in attributes]
            new = [onnx.helper.make_attribute(name, value) for name, value in attributes.items()]
            del node.attribute[:]
            node.attribute.extend(kept + new)
    onnx.save(proto, context)


def put(context, weights, data):
    """A file of weights that the model expects."""
    weights.write_bytes(data)
    change(context, notes=struct.unpack_from("=Q", data, OFFSETS["identity"])[0].to_bytes(8, "big").hex())


def test_signed_files_are_taken(saved):
    path, context, weights = saved
    put(context, weights, signed(weights.read_bytes()))
    np.testing.assert_array_equal(run(context), run(path))


def test_every_byte_of_header_and_index(saved):
    _, context, weights = saved
    data = weights.read_bytes()
    (index,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
    for at in (*range(HEADER), *range(index, len(data))):
        weights.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        refused(context, "holds no context|byte order|version|damaged")


def test_every_byte_of_the_weights_when_asked(saved):
    path, context, weights = saved
    data = weights.read_bytes()
    (index,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
    np.testing.assert_allclose(run(context, verify=1), run(path))
    for at in range(HEADER, index, 97):
        weights.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        refused(context, "damaged: the bytes from", verify=1)
        run(context)  # and no harm otherwise


def test_other_lengths(saved):
    _, context, weights = saved
    data = weights.read_bytes()
    for size in (0, 1, HEADER - 1, HEADER, HEADER + 1, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:size])
        refused(context, "holds no context|damaged: it has")
    weights.write_bytes(data + b"\0")
    refused(context, "damaged: it has")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 6}, "version 6 of the format, this library has version 5; compile the model again"),
        ({"byte_order": 0x04030201}, "another byte order"),
        ({"file_size": 1 << 60}, "damaged: it has"),
        ({"index_offset": WORD}, "no index"),
        ({"index_offset": 0}, "no index"),
        ({"index_size": WORD}, "no index"),
        ({"index_size": 0}, "no index"),
        ({"index_hash": 5}, "its index has another hash"),
        ({"nodes": 2}, "not as many nodes"),
        ({"nodes": WORD}, "not as many nodes"),
    ],
)
def test_impossible_headers(saved, changes, match):
    _, context, weights = saved
    offset = {"index_hash": 0} if "index_offset" in changes else {}
    put(context, weights, signed(weights.read_bytes(), **changes, **offset))
    refused(context, match)


def test_the_file_of_another_model(saved, tmp_path):
    _, context, weights = saved
    (tmp_path / "other").mkdir()
    other = compiled(tmp_path / "other", nbits_model(8))[2]
    weights.write_bytes(other.read_bytes())
    refused(context, "is not the file that the model was saved with")


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.weights", "a/b", "", ".", "..", "x\0y"])
def test_names_that_leave_the_folder(saved, name):
    _, context, _ = saved
    change(context, ep_cache_context=name.encode())
    refused(context, "must be named without a folder")


def test_what_is_no_file(saved, tmp_path):
    _, context, weights = saved
    data = weights.read_bytes()
    weights.unlink()
    refused(context, "No such file or directory; the model needs this file beside it")
    weights.mkdir()
    refused(context, "is no regular file")
    weights.rmdir()
    os.mkfifo(weights)
    refused(context, "is no regular file")
    weights.unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_bytes(data)
    weights.symlink_to(weights.name)
    refused(context, "Too many levels of symbolic links")
    weights.unlink()
    weights.symlink_to("folder/inside")
    run(context)
    (moved := tmp_path / "moved").mkdir()
    os.rename(context, moved / context.name)
    (moved / weights.name).symlink_to(tmp_path / "folder" / "inside")
    refused(moved / context.name, "is a link that leaves the folder of the model; copy the file itself")


def test_links_of_model_caches_and_mounted_volumes(saved, tmp_path):
    """The model and its weights are links: to files without their names, to another folder, to a folder."""
    path, context, weights = saved
    want = run(path)
    (blobs := tmp_path / "blobs").mkdir()
    (snapshot := tmp_path / "snapshots" / "1f").mkdir(parents=True)
    for file, blob in ((context, "a1"), (weights, "b2")):
        os.rename(file, blobs / blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    np.testing.assert_array_equal(run(snapshot / context.name), want)
    (linked := tmp_path / "linked").symlink_to(snapshot)
    np.testing.assert_array_equal(run(linked / context.name), want)

    (store := tmp_path / "store").mkdir()
    os.rename(blobs / "a1", store / "m.onnx")
    os.rename(blobs / "b2", store / weights.name)
    (alone := tmp_path / "alone").mkdir()
    (alone / "model.onnx").symlink_to(store / "m.onnx")
    np.testing.assert_array_equal(run(alone / "model.onnx"), want)
    chosen = options()
    chosen.add_session_config_entry("ep.context_file_path", str(alone / "model.onnx"))
    session = ep.session((alone / "model.onnx").read_bytes(), chosen)
    np.testing.assert_array_equal(session.run(None, feeds_of(session))[0], want)


def test_an_index_of_a_terabyte(saved):
    """In a file of that length which holds next to nothing."""
    _, context, weights = saved
    data, size = weights.read_bytes(), 1 << 40
    try:
        with open(weights, "r+b") as file:
            file.truncate(size)
    except OSError:
        pytest.skip("no files of that length here")
    (offset,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
    header = signed(data[:HEADER], file_size=size, index_size=size - offset, index_hash=0)
    with open(weights, "r+b") as file:
        file.write(header)
    change(context, notes=struct.unpack_from("=Q", header, OFFSETS["identity"])[0].to_bytes(8, "big").hex())
    refused(context, "damaged: its index is too long")


def test_records_of_nothing(saved):
    _, context, weights = saved
    data = weights.read_bytes()
    (offset,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
    empty = data[:offset] + bytes(8 * 1000)
    put(context, weights, signed(empty, file_size=len(empty), index_size=8000, nodes=1000))
    refused(context, "damaged: a record is too short")


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"partition_name": "1"}, "has no node 1"),
        ({"partition_name": "-1"}, "partition_name is '-1', no number"),
        ({"partition_name": "9" * 30}, "no number"),
        ({"notes": "0"}, "is not the file"),
        ({"embed_mode": 1}, "embed_mode is not 0"),
    ],
)
def test_other_attributes(saved, attributes, match):
    _, context, _ = saved
    change(context, **attributes)
    refused(context, match)


def test_values_of_other_types(saved):
    _, context, _ = saved
    original = onnx.load(context)
    (node,) = [node for node in original.graph.node if node.op_type == "EPContext"]
    for name, match in ((node.input[0], "input 0 has another type"), (node.output[0], "its output is not that saved")):
        for kind in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            proto = onnx.ModelProto.FromString(original.SerializeToString())
            del proto.graph.node[1:]
            proto.graph.node[0].CopyFrom(node)
            proto.graph.output[0].name = node.output[0]
            for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
                if value.name == name:
                    value.type.tensor_type.elem_type = kind
            onnx.save(proto, context)
            refused(context, match)
    proto = onnx.ModelProto.FromString(original.SerializeToString())
    next(node for node in proto.graph.node if node.op_type == "EPContext").output.append("another")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("another", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, context)
    refused(context, "its output is not that saved")


@pytest.mark.parametrize("seed", range(4))
def test_hostile_records(saved, seed):
    """Files whose hashes fit and whose contents do not: an error or an answer, and never a crash."""
    _, context, weights = saved
    data = weights.read_bytes()
    (start,) = struct.unpack_from("=Q", data, OFFSETS["index_offset"])
    chance = random.Random(seed)
    numbers = [
        0,
        1,
        2,
        3,
        15,
        16,
        17,
        32,
        37,
        64,
        96,
        256,
        1 << 20,
        1 << 31,
        1 << 40,
        1 << 62,
        1 << 63,
        WORD,
        len(data),
    ]
    child, answers = Child(), 0
    feeds = {"A": np.ones((3, 96), np.float32)}
    try:
        for _ in range(150):
            index = bytearray(data[start:])
            for _ in range(chance.choice([1, 1, 2, 3])):
                at = chance.randrange(0, len(index) - 8)
                if chance.random() < 0.3:
                    index[at] = chance.randrange(256)
                else:
                    struct.pack_into("=Q", index, at, chance.choice(numbers))
            if chance.random() < 0.2:
                del index[chance.randrange(len(index)) :]
            changed = data[:start] + bytes(index)
            put(context, weights, signed(changed, file_size=len(changed), index_size=len(index)))
            answer = child.run(str(context), feeds, provider=True)
            answers += isinstance(answer, list)
            assert (
                isinstance(answer, list)
                or ep.NAME in answer
                or "A for the following" in answer
                or "has shape" in answer
            )
    finally:
        child.close()
    assert answers < 150
