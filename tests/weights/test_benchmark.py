"""The benchmark of loading runs, at a size that takes seconds."""

import json

import pytest

from benchmarks import common, load


@pytest.mark.full
def test_both_sides_load_the_same_file_in_each_dtype(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    load.main(size="tiny", rounds=1)
    written = json.loads((tmp_path / "benchmarks" / "results" / "load.json").read_text())
    assert set(written["results"]) == {"float32", "bfloat16"}
    for results in written["results"].values():
        assert set(results) == {"sdjax", "diffusers"}
        assert all(result["median_s"] > 0 for result in results.values())
        assert all("memory_over_parameters" in result for result in results.values())
    assert 1e6 < written["settings"]["parameters"] < load.PARAMETERS / 50
    assert "wanted ≤ 1.2" in capsys.readouterr().out
