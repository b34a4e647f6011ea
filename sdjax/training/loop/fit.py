"""The one training loop."""

import dataclasses
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sdjax.checkpoints import VALIDATION, Checkpoints
from sdjax.chips import chip_of
from sdjax.errors import SdjaxError
from sdjax.folders import one_line_errors
from sdjax.mirror import checkpoints_of, place_of
from sdjax.parallel import COPIES, Placement, Votes, leader, use_compile_cache
from sdjax.room import told_when_full

from .config import RunConfig
from .feed import Feed
from .optimizers import learning_rate, make_optimizer
from .pace import Pace
from .report import Report, Silent
from .signals import Signals
from .settings import as_json, changes, say, tell
from .state import TrainState
from .step import make_step
from .trace import Trace
from .validation import Best

LAG = 2  # calls between sending a step and reading its metrics, so that an accelerator never waits

MINUTES = 1  # why a run stops, beside the numbers of signals

WHEN_FULL = (
    "lower batch_size (accumulation makes up for it) or turn remat on; what was saved before stays"
)


class Outcome(NamedTuple):
    """What `fit` returns: EMA and step as NumPy, whether all steps are done, seconds spent."""

    ema: Any
    step: int
    finished: bool
    seconds: float


def fit(
    objective, frozen, batches, config: RunConfig, folder, *, name="train", sheet=None, about=None,
    validation=None, placement=Placement(),
):
    """Train, or go on training, in `folder`.

    objective: has init(key, frozen) -> parameters and loss(params, frozen, batch, keys), see
      `make_step`. Where it has them: kept(frozen) -> what of it the loss needs; rates(params) -> a
      tree of what the learning rate of each leaf is multiplied with; optimizer() -> an Optax one in
      place of the config's, with learning_rate(step) to be told; given, and
      begin(state, optimizer) -> state, as `make_step` has them.
    frozen: tree of arrays passed to the loss; it is put on the devices here.
    batches: iterator of trees of arrays [config.batch_size, …] with get_state and set_state.
    sheet: ema -> (images, captions or None) for the sample sheet, or None. The arrays lie on the
      devices, or where `placement` cuts them on the host.
    validation: (ema, frozen), both on devices -> float, asked before each checkpoint that is due;
      that of the least is kept beside the newest ones, see `best_weights`. Or None.
    about: JSON dict kept with every checkpoint, by default the config; what differs from it when
      training goes on, or is found finished, is told.
    placement: a `sdjax.parallel.Placement`. Checkpoints do not depend on it.

    Returns an Outcome; `finished` is False after SIGTERM, SIGINT or config.max_minutes, when
    everything is saved to go on later. Raises SdjaxError when the loss stops being finite (the
    last good checkpoint stays), when the checkpoint is of another architecture, when memory is too
    small, or when the disk is full or fails (what was saved stays).
    """
    with one_line_errors(folder), told_when_full(WHEN_FULL):
        use_compile_cache()
        place = placed_by(config, placement.laid_out())
        return _fit(
            objective, frozen, batches, config, folder, name, sheet, about, validation, place
        )


def _fit(objective, frozen, batches, config, folder, name, sheet, about, validation, place):
    begun = time.monotonic()
    if place is not COPIES:
        frozen = place.put(frozen)
    about = as_json(about or dataclasses.asdict(config))
    optimizer = optimizer_of(objective, config)
    checkpoints = Checkpoints(checkpoints_of(folder), config.keep_checkpoints, config.keep_every)
    try:
        step, init = checkpoints.latest(), _initial(objective, optimizer)
        if step is None:
            # The key is an argument: XLA would take minutes to draw constants while it compiles.
            state = place.create(init, jax.random.key(config.seed), frozen)
            step, before, changed = 0, 0.0, []
        else:
            shapes = place.shapes(_checked(checkpoints, init, config, frozen))
            state, notes = checkpoints.restore(step, shapes)
            batches.set_state(_unpacked(notes["data"]))
            before, changed = notes["seconds"], changes(notes["about"], about)
        if step == config.steps:
            say(f"{name}: all {step} steps are done already; more steps train it on")
            tell(folder, changed)
            return Outcome(place.gathered(state.ema), step, True, before)
        kind = Report if leader() else Silent
        report = kind(folder, name, step, config.steps)
        try:
            where = place_of(folder)
            for line in [f"{name}: going on after step {step} in {where}", *changed][:step]:
                report.say(line)
            run = _Run(objective, optimizer, config, checkpoints, report, sheet, about, place)
            run.clock, run.validation = begun - before, validation
            if config.profile:
                run.trace = Trace(Path(folder) / "profile", report.say)
            kept = getattr(objective, "kept", None)
            return run.go(state, step, place.own(kept(frozen) if kept else frozen), batches)
        finally:
            report.close()
    finally:
        checkpoints.close()


def check(objective, config: RunConfig, folder, frozen=None):
    """SdjaxError where `folder` holds a checkpoint that `fit` could not go on from.

    Nothing is compiled, read or written, so that this can come before all other preparations.
    """
    if not _begun(folder):
        return
    checkpoints = _existing(folder)
    try:
        if checkpoints.latest() is not None:
            init = _initial(objective, optimizer_of(objective, config))
            _checked(checkpoints, init, config, frozen)
    finally:
        checkpoints.close()


def has_begun(folder) -> bool:
    """Whether `fit` has made a checkpoint in `folder`."""
    if not _begun(folder):
        return False
    checkpoints = _existing(folder)
    try:
        return checkpoints.latest() is not None
    finally:
        checkpoints.close()


def kept_weights(objective, config: RunConfig, folder, frozen=None):
    """Yields (step, seconds of training, averaged weights) of every checkpoint in `folder`."""
    checkpoints = _existing(folder)
    try:
        init = _initial(objective, optimizer_of(objective, config))
        shapes = jax.eval_shape(init, jax.random.key(0), frozen)
        for step in checkpoints.steps():
            state, notes = checkpoints.restore(step, shapes)
            yield step, notes["seconds"], state.ema
    finally:
        checkpoints.close()


def best_weights(objective, config: RunConfig, folder, frozen=None) -> Best | None:
    """The checkpoint in `folder` of the least validation loss; None where there was no validation.
    """
    checkpoints = _existing(folder)
    try:
        found = checkpoints.best()
        if found is None:
            return None
        init = _initial(objective, optimizer_of(objective, config))
        shapes = jax.eval_shape(init, jax.random.key(0), frozen)
        state, _ = checkpoints.restore(found[0], shapes)
        return Best(*found, state.ema)
    finally:
        checkpoints.close()


def _existing(folder):
    return Checkpoints(checkpoints_of(folder), read_only=True)


def _begun(folder):
    return epath.Path(checkpoints_of(folder)).is_dir()


def _initial(objective, optimizer):
    return lambda key, frozen: TrainState.create(objective.init(key, frozen), optimizer)


def placed_by(config, place):
    """Where a run's arrays lie, of a placement that is laid out."""
    return place.keeping("ema") if config.ema_on_host else place


def step_of(objective, optimizer, config, place):
    """The compiled step of an objective, see `make_step`."""
    begin = getattr(objective, "begin", None)
    return make_step(
        objective.loss, optimizer, config, place,
        getattr(objective, "given", ()), begin and (lambda state: begin(state, optimizer)),
    )


def optimizer_of(objective, config):
    """The optimizer of an objective's run."""
    if hasattr(objective, "optimizer"):
        return objective.optimizer()
    return make_optimizer(config.optimizer, config.steps, getattr(objective, "rates", None))


def _checked(checkpoints, init, config, frozen):
    """Shapes of the state, once the newest checkpoint has turned out to have the same."""
    step, shapes = checkpoints.latest(), jax.eval_shape(init, jax.random.key(0), frozen)
    checkpoints.check(step, shapes)
    if step > config.steps:
        raise SdjaxError(
            f"{checkpoints.where} is already at step {step}, beyond the {config.steps} asked for: "
            "ask for more steps or train into another folder"
        )
    return shapes


class _Run:
    def __init__(self, objective, optimizer, config, checkpoints, report, sheet, about, place):
        self.about, self.place = about, place
        self.config, self.checkpoints, self.report = config, checkpoints, report
        self.make_sheet, self.drawn = sheet, False
        own = getattr(objective, "learning_rate", None)
        self.learning_rate = own or learning_rate(config.optimizer, config.steps)
        self.update = step_of(objective, optimizer, config, place)
        self.clock, self.trace = time.monotonic(), None
        self.pace = Pace(
            config.steps_per_call, config.images_per_step * config.steps_per_call,
            jax.device_count(),
        )
        self.sent, self.votes, self.stop = deque(), Votes(), 0
        # On the CPU a call runs in the caller's threads, so nothing is gained by running ahead, and
        # several steps in flight can lock each other out of the threads their averaging waits for.
        self.lag = 0 if jax.default_backend() == "cpu" else LAG
        self.window = []

    def go(self, state, step, frozen, batches):
        with Signals() as signals:
            leading = self.config.steps_per_call, self.config.accumulation
            feed = Feed(batches, leading, self.place)
            try:
                return self._updates(self.place.own(state), step, frozen, feed, signals)
            finally:
                feed.close()
                if self.trace is not None:
                    self.trace.close()

    def _updates(self, state, step, frozen, feed, signals):
        config = self.config
        begun = step
        deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else float("inf")
        alone = jax.process_count() == 1

        def asked():
            """A signal's number, MINUTES where time is over, or 0."""
            return signals.received or (MINUTES if time.monotonic() > deadline else 0)

        while step < config.steps:
            with self.pace.waiting():
                batch, position = next(feed)
            with signals.may_be_left(step == begun):  # nothing is lost by it
                if step == begun:
                    self.report.stage("compiling the training step")
                    self.pace.utilised = self._utilised(state, frozen, batch)
                state, metrics = self.update(state, frozen, batch)
                before, step = step, step + config.steps_per_call
                self.sent.append((before, metrics, self.votes.cast(asked())))
                self._read(keep=0 if before == begun else self.lag)
            if before == begun:
                self.report.stage("")
                if step < config.steps:  # how long that took says nothing of the time left
                    self.pace.restart()
            if self.trace is not None:
                self.trace.called(metrics)
            stop = self.stop or (alone and asked())
            due = step == config.steps or _passed(before, step, config.checkpoint_every)
            with signals.may_be_left(alone, lambda: self._rescued(state, step, position)):
                judged = self._judged(state, step, frozen) if due and not stop else {}
            if stop or due:
                self._save(state, step, position, judged)
            wanted = step == config.steps or _passed(before, step, config.sheet_every)
            if wanted and (step == config.steps or not stop):
                with signals.may_be_left(alone, lambda: self._rescued(state, step, position)):
                    self._sheet(state, step)
            if stop and step < config.steps:
                why = (f"{config.max_minutes:g} minutes are over" if stop == MINUTES
                       else signal.Signals(stop).name)
                self.report.say(f"{why}: saved step {step} of {config.steps}; "
                                "the same command goes on from there")
                break
        self.checkpoints.wait()
        ema = self.place.gathered(state.ema)
        return Outcome(ema, step, step == config.steps, self._seconds())

    def _utilised(self, *arguments):
        """Share of a second that a call takes a device at its best; None where that is not known.

        The program is lowered once more for it, which is short beside compiling it.
        """
        chip = chip_of(jax.local_devices()[0].device_kind)
        if chip is None:
            return None
        flops = self.update.lower(*arguments).cost_analysis()["flops"]
        often = self.config.steps_per_call * self.config.accumulation  # a loop's body counts once
        return often * flops / self.place.sharing / chip.flops

    def _seconds(self):
        return time.monotonic() - self.clock

    def _read(self, keep=0):
        """Take in the metrics of all but the newest `keep` calls."""
        while len(self.sent) > keep:
            before, metrics, vote = self.sent.popleft()
            self.stop = max(self.stop, self.votes.read(vote))
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
            if bad.any():
                self._fail(before + int(bad.argmax()) + 1)
            step = before + self.config.steps_per_call
            self.window.append(metrics)
            self.pace.called()
            self.report.advance(step)
            if _passed(before, step, self.config.log_every) or step == self.config.steps:
                means = {name: float(np.mean([m[name] for m in self.window])) for name in metrics}
                means["learning_rate"] = float(self.learning_rate(step - 1))
                pace = self.pace.figures()
                left = (self.config.steps - step) * pace["step_seconds"]
                self.report.metrics(step, means, pace, self._seconds(), left)
                self.window = []

    def _fail(self, step):
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = "no checkpoint was made yet" if good is None else (
            f"the last good checkpoint, step {good}, is kept in {self.checkpoints.where}"
        )
        raise SdjaxError(
            f"loss or gradient is not finite at step {step}: {kept}; "
            "lower the learning rate, clip more, or look for broken data"
        )

    def _judged(self, state, step, frozen):
        if self.validation is None:
            return {}
        self._read()
        with self.pace.paused():
            loss = self.validation(self.place.near(state.ema), frozen)
            self.report.validation(step, loss, self._seconds())
        return {VALIDATION: loss}

    def _save(self, state, step, position, more):
        self._read()  # a state whose loss was not finite must not become a checkpoint
        about = {"data": _packed(position), "seconds": self._seconds(), "about": self.about}
        with self.pace.paused():
            self.checkpoints.save(step, state, about | more)

    def _rescued(self, state, step, position):
        """Saves in place of a thread that is busy with what can be left."""
        self._save(state, step, position, {})
        self.checkpoints.wait()

    def _sheet(self, state, step):
        if self.make_sheet is None:
            return
        self._read()
        with self.pace.paused():
            ema = self.place.shown(state.ema)
            if leader():
                self._draw(ema, step)

    def _draw(self, ema, step):
        self.report.stage("drawing the sheet" if self.drawn else "compiling and drawing the sheet")
        images, captions = self.make_sheet(ema)
        path = self.report.sheet(step, images, captions)
        self.report.stage("")
        self.drawn = True
        self.report.say(f"sheet of step {step}: {path}")


def _passed(before, step, every):
    """Whether a multiple of `every` lies in (before, step]."""
    return bool(every) and step // every > before // every


def _packed(position):
    """An iterator's position as JSON; some of grain's are bytes."""
    return {"text": position.decode()} if isinstance(position, bytes) else {"json": position}


def _unpacked(notes):
    return notes["text"].encode() if "text" in notes else notes["json"]
