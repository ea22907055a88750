"""Loading is compared with reading, and what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

from benchmarks import loading
from tests.benchmarks.programs import refused, run_benchmark

SHAPE = """
model_type: llama
hidden_size: 32
intermediate_size: 64
num_hidden_layers: 2
num_attention_heads: 4
num_key_value_heads: 2
vocab_size: 64
"""


def test_reading_and_loading_are_timed_from_disk_and_cache(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SHAPE)
    words = ["--shape", str(tmp_path / "tiny.yaml"), "--rounds", "2", "--threads", "1"]
    content = run_benchmark(loading, [*words, "--device", "cpu"], tmp_path)
    assert [row["source"] for row in content["rows"]] == ["disk", "cache"]
    for row in content["rows"]:
        for name in ("read_s", "load_s", "transformers_s"):
            assert len(row[name]) == 2
            assert all(seconds > 0.0 for seconds in row[name])
    assert content["weight_bytes"] >= 2 * 2 * 64 * 32


def test_what_cannot_be_measured_is_refused() -> None:
    assert "rounds: 0 is below 1" in refused(loading, ["--rounds", "0"])
    assert "there is no shape 'lama'" in refused(loading, ["--shape", "lama", "--device", "cpu"])
