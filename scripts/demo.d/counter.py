"""Counts page views in counter.json, as one does: open for update, read, add one, write back.

usage: counter.py DIR SECONDS
"""

import json
import os
import sys
import time

from tally import Tally


def count_one(path):
    with open(path, "r+") as f:
        doc = json.load(f)
        doc["views"] += 1
        f.seek(0)
        json.dump(doc, f)
        f.truncate()


def main():
    path, seconds = os.path.join(sys.argv[1], "counter.json"), float(sys.argv[2])
    tally = Tally()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            count_one(path)
        except OSError as error:
            tally.error(error)
        except ValueError:
            tally.counts["torn"] += 1
            tally.counts["invalid"] += 1
            tally.counts["unparsable"] += 1
        else:
            tally.counts["updates"] += 1
    tally.report()


main()
