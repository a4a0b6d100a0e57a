from __future__ import annotations

import subprocess
import sys

import pytest

from optiq_core.errors import TrainingError
from optiq_core.train.config import TrainConfig, decode_config
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
