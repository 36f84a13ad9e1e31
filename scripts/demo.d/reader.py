"""The web app's side: serves page after page from the pipeline's files, and never heard of locking.

usage: reader.py DIR SECONDS
"""

import json
import os
import random
import sys
import time

import market
from tally import Tally

# A visitor looks at a page before asking for the next one.
PAUSE = 0.06


def load(directory, phase):
    with open(os.path.join(directory, phase + ".json")) as f:
        return json.load(f)


def main():
    directory, seconds = sys.argv[1], float(sys.argv[2])
    tally = Tally()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        phase = random.choice(market.PHASES)
        tally.read(lambda: load(directory, phase), phase)
        time.sleep(random.uniform(0, 2 * PAUSE))
    tally.report()


main()
