"""Versions of keys: which ones were acknowledged and when, which ones were lost, and the judgement
of what a reader gets.

The value of a key is its version. A version is stale if a later one was acknowledged more than the
bound before the request. A version that a killed primary lost must not be served longer than the
bound after the promotion.
"""

import bisect
import threading


class History:
    """Versions of one key. Times and versions are in ascending order."""

    def __init__(self):
        self.times, self.versions, self.sent = [], [], 0
        # Lost versions, and the time from which on they are wrong.
        self.lost = {}

    def find_floor(self, time):
        """Returns the newest version that was acknowledged by `time` and not lost."""
        at = bisect.bisect_right(self.times, time)
        while at > 0 and self.versions[at - 1] in self.lost:
            at -= 1
        return self.versions[at - 1] if at > 0 else 0

    def compute_age(self, version, requested):
        """Returns how long before the request a newer version was acknowledged. 0 if none was."""
        at = bisect.bisect_right(self.versions, version)
        while at < len(self.versions) and self.versions[at] in self.lost:
            at += 1
        return max(0, requested - self.times[at]) if at < len(self.versions) else 0


class Versions:
    """Histories of all keys, for several threads."""

    # Findings beyond this number would say the same.
    MAX_SUSPECTS = 10_000

    def __init__(self, keys, bound):
        self.histories = {key: History() for key in keys}
        self.bound, self.lock, self.suspects = bound, threading.Lock(), []

    def take_version(self, key):
        """Returns the next version of a key, which its writer is about to write."""
        with self.lock:
            history = self.histories[key]
            history.sent += 1
            return history.sent

    def record_acknowledged(self, key, version, now):
        """Records a version that a server acknowledged."""
        with self.lock:
            history = self.histories[key]
            history.times.append(now)
            history.versions.append(version)

    def record_held(self, key, held, promoted_at):
        """Compares with the version that servers hold after a failover, while the writer pauses.

        Returns the number of acknowledged versions that were lost.
        """
        with self.lock:
            history = self.histories[key]
            # A write without a reply may have been seen by readers too.
            lost = [version for version in range(held + 1, history.sent + 1) if version not in history.lost]
            history.lost.update((version, promoted_at) for version in lost)
            acknowledged = set(history.versions[-len(lost):]) if lost else set()
            return sum(version in acknowledged for version in lost)

    def observe(self, key, version, requested):
        """Judges a value. Returns its age, or None for one that was never written."""
        with self.lock:
            history = self.histories[key]
            if not 0 < version <= history.sent:
                return None
            if self.find_reason(history, version, requested) and len(self.suspects) < self.MAX_SUSPECTS:
                # Judged again at the end, when it is known which versions were lost.
                self.suspects.append((key, version, requested))
            return history.compute_age(version, requested)

    def find_reason(self, history, version, requested):
        """Returns the reason why a value is wrong, or None."""
        floor = history.find_floor(requested - self.bound)
        if version in history.lost:
            late = requested - history.lost[version]
            return "version %d was lost %.2f s before the request" % (version, late) if late > self.bound else None
        if version < floor:
            age = history.compute_age(version, requested)
            return "version %d, and a newer one was acknowledged %.2f s before the request" % (version, age)
        return None

    def list_findings(self):
        """Returns key, time of the request and reason of each wrong value."""
        with self.lock:
            judged = [(key, requested, self.find_reason(self.histories[key], version, requested))
                      for key, version, requested in self.suspects]
            return [finding for finding in judged if finding[2]]
