"""Counting, the one thing the demo's programs do that the programs they stand for would not.

Where a legacy program would have died with a traceback, these count it and go on.
"""

import collections
import json
import sys
import time

import market


class Tally:
    """What one program has seen; `report` hands it to the demo as one line of JSON."""

    def __init__(self):
        self.counts = collections.Counter()
        self.errors = collections.Counter()
        self.slowest = 0.0

    def read(self, load, phase):
        """Calls load() and judges what it gave. A document that is not whole gives None."""
        began = time.monotonic()
        self.counts["reads"] += 1
        try:
            doc = load()
        except OSError as error:
            self.error(error)
            return None
        except ValueError as error:
            self.counts["torn"] += 1
            self.counts["invalid"] += 1
            text = getattr(error, "doc", "")
            self.counts["empty" if not text else "unparsable"] += 1
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)
        if market.is_whole(doc, phase):
            return doc
        self.counts["torn"] += 1
        self.counts["mixed"] += 1
        return None

    def error(self, error):
        """An operation that failed outright: a timeout, an I/O error."""
        self.counts["errors"] += 1
        self.errors[f"{type(error).__name__}: {error.strerror or error}"] += 1

    def report(self):
        """To stdout, once, at the end."""
        json.dump({"counts": self.counts, "errors": self.errors, "slowest": self.slowest}, sys.stdout)
        print(flush=True)
