"""TensorBoard's events, written where they arise: an error of the disk comes at once, not in a
thread that nobody asks.
"""

import time
from pathlib import Path


class Board:
    """An event file in `folder`; what earlier files hold from step `purge` on is dropped."""

    def __init__(self, folder, purge):
        # tensorboardX imports torch, where that is installed.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        Path(folder).mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, Event
        self._writer = event_file_writer.EventsWriter(str(Path(folder) / "events"))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge, session_log=start))

    def scalars(self, step, values):
        """Write a dict of floats."""
        for name, value in values.items():
            self._write(step, self._summary.scalar(name, value))
        self._writer.flush()

    def picture(self, step, name, pixels):
        """Write uint8 [height, width, 3]."""
        self._write(step, self._summary.image(name, pixels, dataformats="HWC"))
        self._writer.flush()

    def _write(self, step, summary):
        event = self._event(wall_time=time.time(), step=step, summary=summary)
        self._writer.write_event(event)

    def close(self):
        """Close the file."""
        self._writer.close()
