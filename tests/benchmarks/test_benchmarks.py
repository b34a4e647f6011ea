"""The benchmarks that have a peer work, and the peers agree, at sizes that take seconds."""

import functools
import json
import operator
import os

import numpy as np
import pytest

from benchmarks import accuracy_curve, attention, common, ddpm_vs_torch, loader
from benchmarks.common import Peer, compare, machine, report

SIZES = {"batch": 4, "size": 8}


class SameProcess:
    """A peer without a process of its own."""

    def __init__(self, name, build, environment, **options):
        self.name, self.tasks = name, build(**options)

    def ask(self, command, name, *args):
        if command == "memory":
            return None
        return {"time": common._time, "value": common._value}[command](self.tasks, name, *args)

    def close(self):
        pass


@pytest.fixture
def plain_memory(monkeypatch):
    """The tests' own process is not to keep what it frees."""
    monkeypatch.setattr(ddpm_vs_torch, "keep_freed_memory", lambda: True)


def test_a_peer_is_a_process_with_its_own_environment():
    fill = functools.partial(operator.mul, b"x", 2**26)
    read = functools.partial(os.getenv, "SDJAX_PEER")
    peer = Peer("one", dict, {"SDJAX_PEER": "yes"}, fill=fill, read=read)
    assert peer.tasks == ["fill", "read"] and "SDJAX_PEER" not in os.environ
    assert peer.ask("value", "read") == "yes"
    assert 0 < peer.ask("time", "read", 5) < 1
    memory = peer.ask("memory", "fill")
    assert memory is None or 60 < memory["peak"] - memory["before"] < 80
    peer.close()


def test_a_peer_that_fails_says_so():
    with pytest.raises(RuntimeError, match="broken failed"):
        Peer("broken", functools.partial(int, "x"), {})


def test_compare_and_report(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    order = []
    peers = [SameProcess(name, dict, {}, task=functools.partial(order.append, name))
             for name in ("a", "b", "c")]
    results = compare(peers, ["task"], rounds=3)
    assert "".join(order) == "abc" * 3 + "bca" + "cab"  # a first and a warm call, then in turn
    written = report("name", "title", results, "a", {"batch": 1}, {"task": 1.0})
    assert json.loads((tmp_path / "results/name.json").read_text()) == written
    assert set(written["over_a"]) == {"b", "c"} and written["machine"]["jax"]
    assert machine()["cores"] >= 1


def test_the_load_told_is_the_one_before_the_benchmark(monkeypatch):
    before = machine()["load_before"]
    monkeypatch.setattr(os, "getloadavg", lambda: (before + 7, 0, 0))
    assert machine()["load_before"] == before


def test_ddpm_peers_agree_and_learn(monkeypatch, plain_memory):
    """Every peer lowers the loss of its batch; a broken step would not show in the times."""
    peers = []

    def peer(*args, **options):
        peers.append(SameProcess(*args, **options))
        return peers[-1]

    monkeypatch.setattr(ddpm_vs_torch, "Peer", peer)
    written = ddpm_vs_torch.main(**SIZES, widths=(32, 32), rounds=1, save=False)
    assert written["settings"]["relative_error"] < 1e-4
    assert set(written["results"]) == {"train", "forward"}
    assert [peer.name for peer in peers] == ["torch", "torch, memory kept", "sdjax"]
    for peer in peers:
        losses = [peer.tasks["train"]() for _ in range(20)]
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2])


def test_attention_peers_agree(monkeypatch):
    monkeypatch.setattr(attention, "Peer", SameProcess)
    written = attention.main(length=64, heads=2, head_dim=8, rounds=1, save=False)
    assert written["settings"]["relative_error"] < 1e-4


def test_accuracy_curve_reads_what_each_model_draws(tmp_path):
    from sdjax.data.scenes import parse_caption
    from sdjax.data.shapes import draw
    from sdjax.evaluation.generation import Generation
    from sdjax.evaluation.shapes_accuracy import shapes_captions

    class Draws:
        """Draws the captions in the middle of the picture, the first ones in the right shape."""

        def __init__(self, right):
            self.right = right

        def generate(self, prompt, seed, output, **options):
            pictures = []
            for caption, number in zip(prompt, seed, strict=True):
                if number >= self.right:
                    shape = "square" if "circle" in caption else "circle"
                    caption = caption.replace(caption.split()[3], shape)
                pictures.append(draw(parse_caption(caption), [(32, 32)]))
            return np.stack(pictures) / np.float32(127.5) - 1

    texts = {split: shapes_captions(8, "one", split) for split in accuracy_curve.SPLITS}
    models = [(10, 60.0, Draws(2)), (20, 120.0, Draws(8))]
    rows = accuracy_curve.measure(models, texts, Generation(), batch=16)
    assert [(row["step"], row["pictures"]) for row in rows] == [(10, 160), (20, 320)]
    for split in accuracy_curve.SPLITS:
        assert rows[0][split] == {"all": 0.25, "shape_and_colour": 0.25, "background": 1.0,
                                  "size": 1.0, "relation": 1.0}
        assert rows[1][split]["all"] == 1.0
    accuracy_curve.plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_both_loaders_give_the_same_pictures(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    monkeypatch.setattr(loader, "one_core", lambda: None)
    monkeypatch.setattr(loader, "SIZE", 32)
    monkeypatch.setattr(loader, "PICTURES", {"small": (64, 96)})
    (tmp_path / "small").mkdir()
    loader.write_shards(tmp_path / "small", (64, 96), 2, 32)
    ours, theirs = (build(tmp_path)["small"]
                    for build in (loader.build_ours, loader.build_webdataset))
    assert ours() == theirs() == (64, 32, 32, 3)
