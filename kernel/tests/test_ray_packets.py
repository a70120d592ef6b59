"""Rows, samples and weights as few large arrays, and back."""

import pickle

import numpy as np
import torch

from skyrl_kernel.ray import parcels as module
from skyrl_kernel.ray.packets import Completions, Requests, Rows, Samples
from skyrl_kernel.ray.parcels import parcels, tensors
from skyrl_kernel.records import Completion, GenerateRequest, Sampling, Scores, TrainingSample


def test_rows_come_back_as_they_were_and_may_be_written_to() -> None:
    rows = [np.arange(3, dtype=np.int32), None, np.zeros(0, np.int32), np.array([7], np.int32)]
    packed = Rows.of(rows)
    packed.flat.flags.writeable = False  # as Ray lends it
    found = packed.unpack()
    for row, back in zip(rows, found, strict=True):
        if row is None:
            assert back is None
        else:
            assert back.dtype == row.dtype
            assert np.array_equal(back, row)
    found[0][0] = 9
    assert found[3][0] == 7


def test_nothing_is_a_packet_too() -> None:
    assert Rows.of([]).unpack() == []
    assert Rows.of([None]).unpack() == [None]
    assert Samples.of([]).unpack() == []


def test_requests_and_completions_come_back_and_not_an_array_for_each() -> None:
    how = Sampling(max_tokens=7, stop=("</answer>",))
    asked = [
        GenerateRequest(tokens=np.arange(length, dtype=np.int32), sampling=how, seed=2**63 + length)
        for length in (3, 1, 5)
    ]
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(Requests.of(asked), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 2  # tokens, and how many of each
    received: Requests = pickle.loads(sent, buffers=buffers)
    for one, back in zip(asked, received.unpack(), strict=True):
        assert (back.sampling, back.seed) == (one.sampling, one.seed)
        assert_same(back.tokens, one.tokens)
    given = [
        Completion(
            tokens=np.arange(length, dtype=np.int32),
            logprobs=-np.ones(length, np.float32),
            versions=np.full(length, 4, np.int32),
            finish_reason=reason,
        )
        for length, reason in ((2, "stop"), (0, "abort"), (3, "length"))
    ]
    for one, back in zip(given, Completions.of(given).unpack(), strict=True):
        assert back.finish_reason == one.finish_reason
        for name in ("tokens", "logprobs", "versions"):
            assert_same(getattr(back, name), getattr(one, name))


def sample(number: int, *, returns: bool) -> TrainingSample:
    def row(scale: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        return (scale * np.arange(number + 1)).astype(np.float32)

    return TrainingSample(
        trajectory_id=f"uid/{number}",
        group=number // 2,
        trajectory=number,
        tokens=np.arange(number + 1, dtype=np.int32),
        loss_mask=np.arange(number + 1) % 2 == 1,
        advantages=row(0.5),
        returns=row(2) if returns else None,
        sampler_logprobs=row(-1),
        scores=Scores(old_logprobs=row(-1.5), values=row(3) if returns else None),
        loss_weights={"policy": row(0.1), "value": row(0.2)},
    )


def test_samples_come_back_field_by_field() -> None:
    samples = [sample(number, returns=number != 1) for number in range(4)]
    for one, back in zip(samples, Samples.of(samples).unpack(), strict=True):
        assert (back.trajectory_id, back.group, back.trajectory) == (
            one.trajectory_id,
            one.group,
            one.trajectory,
        )
        for name in ("tokens", "loss_mask", "advantages", "returns", "sampler_logprobs"):
            assert_same(getattr(back, name), getattr(one, name))
        for name in ("old_logprobs", "ref_logprobs", "teacher_logprobs", "values"):
            assert_same(getattr(back.scores, name), getattr(one.scores, name))
        assert back.loss_weights.keys() == one.loss_weights.keys()
        for term, weights in one.loss_weights.items():
            assert_same(back.loss_weights[term], weights)


def assert_same(found: object, expected: object) -> None:
    if expected is None:
        assert found is None
    else:
        assert isinstance(found, np.ndarray)
        assert isinstance(expected, np.ndarray)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_tensors_of_every_kind_come_back_bit_by_bit() -> None:
    weights = {
        "bf16": torch.randn(3, 5).to(torch.bfloat16),
        "turned": torch.randn(4, 2).T,
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    (parcel,) = parcels(weights.items())
    for item in parcel:
        item.array.flags.writeable = False
    found = dict(tensors(parcel))
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_parcel_is_full_when_the_next_tensor_would_not_fit() -> None:
    # 64 MiB are 2^24 float32; 6, 6, 6, 20 and 1 times 2^20 of 4 bytes are 24, 24, 24, 80 and 4 MiB.
    assert module.PARCEL_BYTES == 64 * 2**20
    sizes = (6, 6, 6, 20, 1)
    weights = [(str(place), torch.empty(size * 2**20)) for place, size in enumerate(sizes)]
    found = [[item.name for item in parcel] for parcel in parcels(weights)]
    assert found == [["0", "1"], ["2"], ["3"], ["4"]]


def test_an_array_that_stands_for_a_tensor_stays_one() -> None:
    (parcel,) = parcels([("weight", np.ones(2))])  # type: ignore[list-item]
    ((name, found),) = tensors(parcel)
    assert name == "weight"
    assert isinstance(found, np.ndarray)
