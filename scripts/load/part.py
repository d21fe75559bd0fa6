"""What the processes of the load have in common: they end when their time is over or when they are told to, and then
print one line that drive.py collects. What goes wrong goes to standard error, a line each, for as long as it is news."""

import json
import signal
import sys
import time


class Part:
    # Lines about each thing that goes wrong; more would only say the same.
    LINES = 5

    def __init__(self, seconds):
        self.ends = time.monotonic() + seconds
        self.told = False
        self.lines = {}
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.told = True

    def left(self):
        """Seconds, 0 when it is over."""
        return 0 if self.told else max(0, self.ends - time.monotonic())

    def complain(self, what, text):
        self.lines[what] = self.lines.get(what, 0) + 1
        if self.lines[what] <= self.LINES:
            print("%s: %s" % (what, text), file=sys.stderr, flush=True)

    def ask_again(self, connect, ask, pause):
        """Calls `ask` with a client from `connect`, with pauses, until the time is over; with a new one where one has broken. Returns
        how many have."""
        client, broken = None, 0
        while self.left() > 0:
            try:
                client = client or connect()
                ask(client)
                time.sleep(pause)
            except OSError as error:
                broken += 1
                self.complain("socket", str(error))
                if client:
                    client.close()
                client = None
                time.sleep(0.1)
        if client:
            client.close()
        return broken

    @staticmethod
    def result(**fields):
        print("RESULT " + json.dumps(fields), flush=True)


def percentile(ordered, share):
    """Of numbers in ascending order; None of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
