"""SIGTERM and SIGINT while a run trains: answered between steps, or soon."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

from sdjax.mirror import push_all

GRACE = 5.0  # seconds that a busy main thread has to come to a signal


class Signals:
    """Remembers the first SIGTERM or SIGINT instead of dying of it; a second one is obeyed.

    Python sees a signal when its main thread comes out of what it does, and that can be minutes of
    compiling. Of a SIGTERM a thread knows at once; where the main thread is in something that may
    be left, and stays there for GRACE seconds, that thread ends the process with status 3.
    """

    def __init__(self):
        self.received = 0
        self._leave, self._lock = None, threading.Lock()

    @contextlib.contextmanager
    def may_be_left(self, allowed: bool, before=lambda: None):
        """What is done meanwhile may be left in the middle, once `before` is called."""
        if not allowed:
            yield
            return
        self._leave = before
        try:
            yield
        finally:
            with self._lock:  # not while the process ends
                self._leave = None

    def __enter__(self):
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._receive)
            self._told, self._heard = socket.socketpair()
            for end in (self._told, self._heard):
                end.setblocking(False)
            self._before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            self._heard.setblocking(True)
            threading.Thread(target=self._listen, name="sdjax-signals", daemon=True).start()
        return self

    def _receive(self, number, _):
        self.received = number
        for n, handler in self._old.items():
            signal.signal(n, handler)

    def _listen(self):
        with self._heard:
            while signal.SIGTERM not in (numbers := self._heard.recv(64)):
                if not numbers:  # the other end is closed
                    return
        since = time.monotonic()
        while self._told.fileno() >= 0:
            if self._leave is not None and time.monotonic() - since > GRACE:
                self._end()
            time.sleep(0.05)

    def _end(self):
        with self._lock:
            if self._leave is None:
                return
            try:
                self._leave()
                push_all()
            except Exception as error:
                print(f"error: SIGTERM: {error}", file=sys.stderr, flush=True)
                os._exit(2)
            print("SIGTERM: ended in the middle of what is no step, with everything saved; the same "
                  "command goes on from there", flush=True)
            sys.stderr.flush()
            os._exit(3)

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._old:
            signal.set_wakeup_fd(self._before)
            self._told.close()
