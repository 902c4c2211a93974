"""InferenceService over real engines: ONNX Runtime, real threads, real images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.backends.base import LoadedEngine
from app.backends.onnxruntime import OnnxRuntime
from app.domain.builds import EngineRecord
from app.domain.errors import (
    EngineNotFound,
    ImageRejected,
    InvalidName,
    InvalidRequest,
    RecipeMissing,
    ShuttingDown,
    TensorRejected,
)
from app.domain.preprocess import Color, Preprocess, row_from_image
from app.domain.tensors import ANY, DType, ShapeRange, Signature, Tensor, Tensors, TensorSpec
from app.serving.pool import EnginePool, EngineState
from app.serving.service import InferenceService
from tests.fakes import FakeEngine, doubled, engine_record, soon, threads_of_serving

SIDE, CLASSES = 6, 10


class Library:
    """Networks as files, and the records that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[tuple[str, int], EngineRecord] = {}
        self.lookups = 0

    def add(self, record: EngineRecord, network: onnx.ModelProto) -> EngineRecord:
        onnx.save(network, self._path(record))
        self.records[record.name, record.version] = record
        return record

    def find(self, name: str, version: int | None) -> EngineRecord:
        self.lookups += 1
        versions = [known for known in self.records if known[0] == name and version in (None, known[1])]
        if not versions:
            raise EngineNotFound(f"No engine {name}.", hint="See /engines.")
        return self.records[max(versions)]

    def load(self, record: EngineRecord) -> LoadedEngine:
        return OnnxRuntime(threads=1).load(self._path(record))

    def _path(self, record: EngineRecord) -> Path:
        return self.folder / f"{record.blob.partition(':')[2]}.onnx"


def network(nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, **constants: Tensor) -> onnx.ModelProto:
    """A graph of float tensors; a length is a number or a name."""
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", *infos, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolution(rows: int | str) -> onnx.ModelProto:
    """Grey images to the logits of ten classes."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["bent"]),
        helper.make_node("Flatten", ["bent"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    return network(
        nodes,
        {"image": [rows, 1, SIDE, SIDE]},
        {"logits": [rows, CLASSES]},
        kernel=np.random.default_rng(1).normal(size=(4, 1, 3, 3)).astype(np.float32),
        weights=np.random.default_rng(2).normal(size=(4 * SIDE * SIDE, CLASSES)).astype(np.float32),
    )


RECIPE = Preprocess("image", SIDE, SIDE, color=Color.GRAY)
LOGITS = (TensorSpec("logits", DType.FLOAT32, (ANY, CLASSES)),)


def image_signature(rows: int, rows_max: int, ranges: dict[str, ShapeRange] | None = None) -> Signature:
    return Signature((TensorSpec("image", DType.FLOAT32, (rows, 1, SIDE, SIDE)),), LOGITS, ranges or {}, rows_max)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path)
    joined = engine_record("digits", signature=image_signature(ANY, 8), preprocess=RECIPE, labels=tuple("0123456789"))
    library.add(joined, convolution("rows"))
    library.add(engine_record("single", signature=image_signature(1, 1), preprocess=RECIPE), convolution(1))
    return library


@pytest.fixture
async def service(library: Library) -> AsyncIterator[InferenceService]:
    pool = EnginePool(library.load, budget_bytes=1 << 30, keep_alive_s=60, contexts=2, queue_rows_max=256)
    service = InferenceService(library.find, pool, found_for_s=3600)
    yield service
    await soon(service.close())
    assert threads_of_serving() == []


def images(count: int) -> list[bytes]:
    pixels = np.random.default_rng(3).integers(0, 256, (count, 9, 11), np.uint8)
    return [cv2.imencode(".png", image)[1].tobytes() for image in pixels]


def batch(rows: int, seed: int = 0) -> Tensor:
    return np.random.default_rng(seed).normal(size=(rows, 1, SIDE, SIDE)).astype(np.float32)


async def test_joined_requests_get_what_separate_runs_answer(service: InferenceService) -> None:
    sent = [batch(1 + seed % 3, seed) for seed in range(40)]
    separate = [(await service.infer("digits", {"image": one})).outputs["logits"] for one in sent]

    answers = await soon(asyncio.gather(*[service.infer("digits", {"image": one}) for one in sent]))

    for alone, answer in zip(separate, answers, strict=True):
        np.testing.assert_allclose(answer.outputs["logits"], alone, rtol=1e-5, atol=1e-5)
    (state,) = service.states()
    assert state.requests == 80
    assert state.runs < 40 + 20  # the second forty shared runs
    assert max(answer.batch_rows for answer in answers) <= 8


async def test_an_answer_stays_as_it_is_while_later_requests_run(service: InferenceService) -> None:
    first = await service.infer("digits", {"image": batch(2)})
    before = first.outputs["logits"].copy()

    await soon(asyncio.gather(*[service.infer("digits", {"image": batch(2, seed)}) for seed in range(20)]))

    np.testing.assert_array_equal(first.outputs["logits"], before)


async def test_requests_that_hang_up_do_not_disturb_the_others(service: InferenceService) -> None:
    await service.load("digits")
    expected = (await service.infer("digits", {"image": batch(1)})).outputs["logits"]
    tasks = [asyncio.create_task(service.infer("digits", {"image": batch(1)})) for _ in range(30)]
    await asyncio.sleep(0.001)

    for task in tasks[::3]:
        task.cancel()
    answers = await soon(asyncio.gather(*tasks, return_exceptions=True))

    for number, answer in enumerate(answers):
        if number % 3:
            assert not isinstance(answer, BaseException)
            np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-5, atol=1e-5)
    assert [(state.leases, state.waiting) for state in service.states()] == [(0, 0)]


async def test_the_only_input_needs_no_name(service: InferenceService) -> None:
    named = await service.infer("digits", {"image": batch(1)})
    unnamed = await service.infer("digits", {"": batch(1)})

    np.testing.assert_array_equal(unnamed.outputs["logits"], named.outputs["logits"])


async def test_an_unnamed_tensor_beside_named_ones_is_refused(service: InferenceService) -> None:
    with pytest.raises(TensorRejected, match="without a name"):
        await service.infer("digits", {"": batch(1), "image": batch(1)})


async def test_a_tensor_in_another_memory_order_means_the_same(service: InferenceService) -> None:
    transposed = np.asfortranarray(batch(3))

    answer = await service.infer("digits", {"image": transposed})

    straight = await service.infer("digits", {"image": batch(3)})
    np.testing.assert_allclose(answer.outputs["logits"], straight.outputs["logits"], rtol=1e-6)


async def test_a_runtime_gets_its_tensors_c_contiguous() -> None:
    orders: list[bool] = []

    def noted(inputs: Tensors) -> Tensors:
        orders.append(inputs["x"].flags.c_contiguous)
        return doubled(inputs)

    pool = EnginePool(
        lambda record: FakeEngine(answer=noted), budget_bytes=1000, keep_alive_s=0, contexts=1, queue_rows_max=8
    )
    service = InferenceService(lambda name, version: engine_record(name), pool)
    sent = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))

    answer = await service.infer("net", {"x": sent})
    await service.close()

    assert orders == [True, True]  # the warm-up's and the request's
    assert answer.outputs["y"].tolist() == [[0, 2, 4], [6, 8, 10]]


async def test_a_tensor_that_does_not_fit_loads_no_engine(service: InferenceService) -> None:
    with pytest.raises(TensorRejected, match="has dtype float64"):
        await service.infer("digits", {"image": batch(1).astype(np.float64)})

    assert service.states() == []


async def test_an_unknown_engine_and_an_impossible_name_are_told_apart(service: InferenceService) -> None:
    with pytest.raises(EngineNotFound):
        await service.infer("nobody", {"": batch(1)})
    with pytest.raises(InvalidName):
        await service.infer("digits:zero", {"": batch(1)})


async def test_the_timings_tell_where_the_time_went(service: InferenceService) -> None:
    cold = (await service.infer_images("digits", images(1))).timings_ms
    tensors = (await service.infer("digits", {"": batch(1)})).timings_ms

    assert list(cold) == ["preprocess", "load", "queue", "compute", "total"]
    assert list(tensors) == ["load", "queue", "compute", "total"]
    assert cold["total"] >= cold["preprocess"] + cold["load"] + cold["compute"]
    assert all(ms >= 0 for ms in (*cold.values(), *tensors.values()))


# --- images --------------------------------------------------------------------------------------------------------


async def test_several_images_become_one_run_in_their_order(service: InferenceService) -> None:
    sent = images(5)
    rows = np.stack([row_from_image(image, RECIPE) for image in sent])

    answer = await service.infer_images("digits", sent)

    by_tensor = await service.infer("digits", {"image": rows})
    np.testing.assert_allclose(answer.outputs["logits"], by_tensor.outputs["logits"], rtol=1e-5, atol=1e-5)
    assert answer.batch_rows == 5
    assert answer.engine.built.labels == tuple("0123456789")


async def test_more_images_than_a_run_may_have_are_spread_over_several(service: InferenceService) -> None:
    sent = images(19)

    answer = await service.infer_images("digits", sent)

    apart = [(await service.infer_images("digits", [image])).outputs["logits"] for image in sent]
    np.testing.assert_allclose(answer.outputs["logits"], np.concatenate(apart), rtol=1e-5, atol=1e-5)
    assert answer.batch_rows <= 8


async def test_an_engine_of_a_fixed_batch_of_one_takes_images_one_after_another(service: InferenceService) -> None:
    sent = images(4)

    answer = await service.infer_images("single", sent)

    together = await service.infer_images("digits", sent)
    np.testing.assert_allclose(answer.outputs["logits"], together.outputs["logits"], rtol=1e-5, atol=1e-5)
    assert answer.batch_rows == 1


async def test_no_run_of_images_is_below_the_least_that_the_engine_was_built_for(
    service: InferenceService, library: Library
) -> None:
    shapes = [(rows, 1, SIDE, SIDE) for rows in (2, 3, 4)]
    ranged = image_signature(ANY, 4, {"image": ShapeRange(*shapes)})
    library.add(engine_record("ranged", signature=ranged, preprocess=RECIPE), convolution("rows"))

    answer = await service.infer_images("ranged", images(5))  # 2 + 3, not 4 + 1

    assert answer.outputs["logits"].shape == (5, CLASSES)


async def test_the_image_that_does_not_decode_is_named(service: InferenceService) -> None:
    first, last = images(2)

    with pytest.raises(ImageRejected, match=r"^Image 2 of 3: The 4 bytes are not an image"):
        await service.infer_images("digits", [first, b"none", last])
    with pytest.raises(ImageRejected, match=r"^The 4 bytes are not an image"):
        await service.infer_images("digits", [b"none"])


async def test_a_request_without_images_is_refused(service: InferenceService) -> None:
    with pytest.raises(InvalidRequest, match="holds no image"):
        await service.infer_images("digits", [])


async def test_an_engine_without_a_recipe_takes_no_images(service: InferenceService, library: Library) -> None:
    library.add(engine_record("plain", signature=image_signature(ANY, 8)), convolution("rows"))

    with pytest.raises(RecipeMissing, match="plain:1 takes tensors: image float32 -1x1x6x6"):
        await service.infer_images("plain", images(1))


async def test_an_engine_with_other_inputs_beside_the_image_takes_no_images(
    service: InferenceService, library: Library
) -> None:
    one = image_signature(ANY, 8)
    two = replace(one, inputs=(*one.inputs, TensorSpec("threshold", DType.FLOAT32, (ANY,))))
    library.add(engine_record("two", signature=two, preprocess=RECIPE), convolution("rows"))

    with pytest.raises(RecipeMissing, match="threshold float32 -1"):
        await service.infer_images("two", images(1))


async def test_images_whose_answers_could_not_be_told_apart_are_refused(
    service: InferenceService, library: Library
) -> None:
    """A detector: as many rows as it finds bright pixels."""
    nodes = [
        helper.make_node("Greater", ["image", "half"], ["bright"]),
        helper.make_node("NonZero", ["bright"], ["columns"]),
        helper.make_node("Cast", ["columns"], ["found"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["found"], ["boxes"]),
    ]
    detector = network(nodes, {"image": [1, 1, SIDE, SIDE]}, {"boxes": ["found", 4]}, half=np.array(0.5, np.float32))
    signature = replace(image_signature(1, 1), outputs=(TensorSpec("boxes", DType.FLOAT32, (ANY, 4)),))
    library.add(engine_record("detector", signature=signature, preprocess=RECIPE), detector)
    sent = images(2)

    assert (await service.infer_images("detector", sent[:1])).outputs["boxes"].shape[1] == 4
    with pytest.raises(InvalidRequest, match="'boxes' has shape"):
        await service.infer_images("detector", sent)


# --- versions, loading, closing ----------------------------------------------------------------------------------


async def test_a_busy_engine_is_not_looked_up_for_every_request(service: InferenceService, library: Library) -> None:
    for _ in range(10):
        await service.infer("digits", {"": batch(1)})

    assert library.lookups == 1


async def test_a_new_version_is_seen_once_the_found_one_is_old(library: Library) -> None:
    now_s = 0.0
    pool = EnginePool(library.load, budget_bytes=1 << 30, keep_alive_s=0, contexts=1, queue_rows_max=8)
    service = InferenceService(library.find, pool, clock=lambda: now_s, found_for_s=1)
    assert (await service.infer("digits", {"": batch(1)})).engine.version == 1
    library.add(replace(library.records["digits", 1], version=2), convolution("rows"))

    now_s = 0.9
    assert (await service.infer("digits", {"": batch(1)})).engine.version == 1
    now_s = 1.0
    assert (await service.infer("digits", {"": batch(1)})).engine.version == 2
    assert (await service.infer("digits:1", {"": batch(1)})).engine.version == 1
    await service.close()


async def test_a_forgotten_engine_is_looked_up_at_once(service: InferenceService, library: Library) -> None:
    await service.find("digits")
    await service.find("digits:1")
    del library.records["digits", 1]

    service.forget("digits:1")

    for ref in ("digits", "digits:1"):
        with pytest.raises(EngineNotFound):
            await service.find(ref)


async def test_loading_and_unloading_by_name(service: InferenceService) -> None:
    state = await service.load("digits")

    assert (state.state, state.refs, state.requests) == (EngineState.READY, ("digits:1",), 0)
    assert 0 < service.used_bytes < service.budget_bytes
    assert await service.unload("digits:1")
    assert service.used_bytes == 0
    assert not await service.unload("digits")


async def test_an_engine_that_was_deleted_is_dropped_though_nobody_can_find_it(
    service: InferenceService, library: Library
) -> None:
    await service.load("digits")
    record = library.records.pop(("digits", 1))

    await service.drop(record)

    assert service.states() == []
    with pytest.raises(EngineNotFound):
        await service.infer("digits", {"": batch(1)})


async def test_a_closed_service_answers_that_it_stops(service: InferenceService) -> None:
    await service.infer("digits", {"": batch(1)})

    await service.close()

    with pytest.raises(ShuttingDown):
        await service.infer("digits", {"": batch(1)})
    with pytest.raises(ShuttingDown):
        await service.infer_images("digits", images(1))
