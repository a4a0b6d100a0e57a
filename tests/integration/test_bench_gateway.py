"""`optiq bench gateway` runs all three ways and compares like with like."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from optiq_daemon.bench.gateway import gateway


@pytest.mark.slow
def test_all_ways_decode_the_same_tokens() -> None:
    result = CliRunner().invoke(gateway, ["--quick", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["tokens"]["engine"] == told["tokens"]["grpc"] == told["tokens"]["http"] > 0
    for figure in ("grpc_over_engine", "http_over_engine", "added_ttft_ms", "grpc_added_ttft_ms"):
        assert math.isfinite(told[figure]), figure
    assert min(told["tokens_per_second"].values()) > 0 and told["run"]["profile"]["kind"]
