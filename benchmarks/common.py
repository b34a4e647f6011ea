"""What every benchmark shares: peers in processes of their own, timed turn about, and a report.

A peer is a function that builds tasks: `build(**options) -> {task name: function of nothing}`. It
runs in a fresh process, so that its threads, memory and environment are its own; while one peer
works, the others wait.
"""

import ctypes
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
import traceback
from pathlib import Path

import rich
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = os.getloadavg()[0]  # read on import, as the benchmark itself is a load
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers")


def machine():
    """Where and with what a result was made, as a dict for JSON."""
    info = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "system": platform.platform(), "processor": platform.processor(),
            "cores": cores(), "load_before": LOAD_BEFORE,
            "python": platform.python_version()}
    if os.path.exists("/proc/cpuinfo"):
        text = Path("/proc/cpuinfo").read_text()
        fields = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M)
                  for key in ("model name", "cpu family", "model")}
        info["processor"] = ", ".join(f"{k} {m[1]}" for k, m in fields.items() if m)
        total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]
        info["memory_gib"] = round(int(total) / 2**20, 1)
    for package in PACKAGES:
        try:
            info[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            info[package] = None
    return info


def cores():
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Peer:
    """A process that holds one peer's tasks.

    build must be importable (a module's function); `environment` is set before the process starts.
    """

    def __init__(self, name, build, environment, **options):
        self.name = name
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(other, build, options), daemon=True)
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        other.close()
        self.tasks = self._answer()

    def _answer(self):
        kind, value = self._pipe.recv()
        if kind == "error":
            raise RuntimeError(f"{self.name} failed:\n{value}")
        return value

    def ask(self, command, *args):
        """Result of one of the commands of `_serve`."""
        self._pipe.send((command, *args))
        return self._answer()

    def close(self):
        """Ends the process."""
        self._pipe.send(("end",))
        self._process.join()


def _serve(pipe, build, options):
    try:
        tasks = build(**options)
        pipe.send(("ok", sorted(tasks)))
        while (message := pipe.recv())[0] != "end":
            command, *args = message
            work = {"time": _time, "memory": _memory, "value": _value}[command]
            pipe.send(("ok", work(tasks, *args)))
    except Exception:
        pipe.send(("error", traceback.format_exc()))


def _time(tasks, name, calls):
    """Seconds a call, over `calls` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        tasks[name]()
    return (time.perf_counter() - start) / calls


def _value(tasks, name):
    return tasks[name]()


def _memory(tasks, name):
    """MiB: resident before a call, and the peak during it. None where the system does not tell."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    # What earlier calls have freed, but the allocator keeps, is given back first.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    tasks[name]()
    return {"before": before, "peak": _resident("VmHWM")}


def _resident(field):
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024, 1)


def compare(peers, tasks, rounds=15, calls=1):
    """Time every task of every peer, turn about: {task: {peer: result}}.

    One warming call of each is not counted but reported as `first`. The order of the peers turns
    round by round. A result has the median, the quartiles and the least of the seconds a call, and
    the peak memory of one call more.
    """
    results = {}
    for task in tasks:
        first = {peer.name: peer.ask("time", task, 1) for peer in peers}
        seconds = {peer.name: [] for peer in peers}
        for peer in peers:
            peer.ask("time", task, 1)
        for turn in range(rounds):
            shift = turn % len(peers)
            for peer in peers[shift:] + peers[:shift]:
                seconds[peer.name].append(peer.ask("time", task, calls))
        results[task] = {}
        for peer in peers:
            times = sorted(seconds[peer.name])
            low, median, high = (statistics.quantiles(times, n=4, method="inclusive")
                                 if len(times) > 1 else times * 3)
            results[task][peer.name] = {
                "median_s": median, "quartiles_s": [low, high], "least_s": times[0],
                "first_s": first[peer.name], "rounds": rounds, "calls": calls,
                "memory_mib": peer.ask("memory", task),
            }
    return results


def report(name, title, results, peer, settings, target=None, save=True):
    """Print a table of `compare`'s results, each over those of `peer`, and write RESULTS/name.json.

    target: {task: largest wanted ratio}, only printed and written. Returns what is written.
    """
    table = Table(title=title, title_justify="left")
    for column in ("task", ""):
        table.add_column(column)
    for column in ("ms", "quartiles", f"over {peer}", "wanted", "peak MiB", "of the call"):
        table.add_column(column, justify="right")
    ratios = {}
    for task, row in results.items():
        for who, result in row.items():
            ratio = result["median_s"] / row[peer]["median_s"]
            ratios.setdefault(who, {})[task] = round(ratio, 3)
            wanted = (target or {}).get(task)
            memory = result["memory_mib"]
            low, high = result["quartiles_s"]
            table.add_row(
                task, who, f"{1e3 * result['median_s']:.1f}", f"{1e3 * low:.1f}–{1e3 * high:.1f}",
                "" if who == peer else f"{ratio:.2f}",
                "" if who == peer or wanted is None else f"≤ {wanted:.2f}",
                f"{memory['peak']:.0f}" if memory else "",
                f"{memory['peak'] - memory['before']:.0f}" if memory else "")
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    written = {"benchmark": name, "machine": machine(), "settings": settings, "results": results,
               f"over_{peer}": {who: r for who, r in ratios.items() if who != peer},
               "wanted": target}
    if save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        rich.print(f"written to {path.relative_to(RESULTS.parent.parent)}")
    return written
