"""Parts shared by the processes of the load: deadline, SIGTERM, error lines and the result.

Each process runs until its time is up or SIGTERM arrives, then prints one line that run_load.py
collects. Problems go to standard error, one line each, up to a limit for each kind of problem.
"""

import json
import signal
import sys
import time


class LoadProcess:
    """Deadline and error output of one process."""

    # More lines of the same kind would repeat themselves.
    MAX_LINES_PER_PROBLEM = 5

    def __init__(self, seconds):
        self.deadline = time.monotonic() + seconds
        self.is_stopped = False
        self.lines = {}
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        """Handles SIGTERM."""
        self.is_stopped = True

    def get_seconds_left(self):
        """Returns the seconds until the deadline, or 0 after it and after SIGTERM."""
        return 0 if self.is_stopped else max(0, self.deadline - time.monotonic())

    def log_problem(self, kind, text):
        """Prints a problem, unless enough lines of its kind were printed."""
        self.lines[kind] = self.lines.get(kind, 0) + 1
        if self.lines[kind] <= self.MAX_LINES_PER_PROBLEM:
            print("%s: %s" % (kind, text), file=sys.stderr, flush=True)

    def run_rounds(self, connect, run_round, pause):
        """Calls `run_round` with a client from `connect` until the deadline, with pauses.

        Replaces a client after its connection broke. Returns the number of broken connections.
        """
        client, broken = None, 0
        while self.get_seconds_left() > 0:
            try:
                client = client or connect()
                run_round(client)
                time.sleep(pause)
            except OSError as error:
                broken += 1
                self.log_problem("socket", str(error))
                if client:
                    client.close()
                client = None
                time.sleep(0.1)
        if client:
            client.close()
        return broken

    @staticmethod
    def print_result(**fields):
        """Prints the line that run_load.py collects."""
        print("RESULT " + json.dumps(fields), flush=True)


def compute_percentile(ordered, share):
    """Returns a percentile of numbers in ascending order, or None if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
