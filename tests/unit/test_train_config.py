from __future__ import annotations

import subprocess
import sys

import pytest

from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig, decode_config
from optiq_core.train.ranks import allocate_ranks, distribution
from optiq_protos.v1 import training_pb2


def test_defaults_are_valid_and_fields_are_those_of_the_protocol() -> None:
    config = TrainConfig(data_path="data")
    assert config.violations() == []
    fields = {field.name for field in training_pb2.TrainingConfig.DESCRIPTOR.fields}
    assert set(config.__struct_fields__) == fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_path", ""),
        ("rank", 0),
        ("rank", 257),
        ("scale", float("nan")),
        ("scale", 0.0),
        ("dropout", 1.0),
        ("num_layers", 0),
        ("num_layers", -2),
        ("iters", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("max_seq_length", 1),
        ("steps_per_checkpoint", 0),
        ("seed", -1),
        ("target_modules", ()),
        ("rank_scaling", "by_moon"),
    ],
)
def test_a_field_out_of_range_is_named_with_what_is_allowed(field: str, value: object) -> None:
    config = TrainConfig(**{"data_path": "data", field: value})  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=f"^{field}: must") as caught:
        config.validate()
    assert caught.value.field == field


def test_unknown_fields_and_wrong_types_are_refused() -> None:
    with pytest.raises(TrainingError, match="learning_rat"):
        decode_config(b'{"data_path": "d", "learning_rat": 1}')
    with pytest.raises(TrainingError, match="rank"):
        decode_config({"data_path": "d", "rank": "eight"})
    assert decode_config({"data_path": "d", "num_layers": -1}).num_layers == -1


def test_by_bits_gives_rank_times_bits_over_four_rounded_up() -> None:
    bits = {"a": 4, "b": 8, "c": 3, "d": 5}
    ranks = allocate_ranks(bits, rank=8, scaling="by_bits", bits_of=bits.__getitem__)
    assert ranks == {"a": 8, "b": 16, "c": 6, "d": 10}
    assert distribution(ranks) == {6: 1, 8: 1, 10: 1, 16: 1}
    assert set(allocate_ranks(bits, rank=8, scaling="constant", bits_of=bits.__getitem__).values()) == {8}


def test_float_modules_get_the_base_rank_alone_and_twice_it_beside_quantized_ones() -> None:
    floats = {"a": 16, "b": 32, "c": None}
    assert set(allocate_ranks(floats, rank=8, scaling="by_bits", bits_of=floats.__getitem__).values()) == {8}
    mixed = {"a": 16, "b": 4}
    assert allocate_ranks(mixed, rank=8, scaling="by_bits", bits_of=mixed.__getitem__) == {"a": 16, "b": 8}


def test_a_rank_that_could_not_be_served_is_refused_before_training() -> None:
    with pytest.raises(TrainingError, match="rank: 'a' would get 400"):
        allocate_ranks(["a"], rank=200, scaling="by_bits", bits_of=lambda path: 8)


def test_the_modules_that_the_daemon_uses_leave_mlx_alone() -> None:
    code = (
        "import sys, optiq_core.train.cli, optiq_core.train.data, optiq_core.train.events, optiq_core.train.ranks,"
        "optiq_core.train.describe, optiq_core.adapters.write, optiq_core.experiments.tasks,"
        "optiq_daemon.trainer_process\n"
        "heavy = [name for name in ('mlx', 'mlx_lm', 'transformers', 'rich') if name in sys.modules]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
