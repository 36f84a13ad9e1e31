"""A stock-analysis pipeline as its author wrote it years ago: five phases, five JSON files, no locks.

Each phase loads the file of the phase before it and saves its own, with plain open(), json.load() and
json.dump(). Several of these run at once on one directory, which its author never thought of.

usage: pipeline.py DIR SYMBOLS until SECONDS     run after run, for that long
       pipeline.py DIR SYMBOLS once              one run, all five phases
       pipeline.py DIR SYMBOLS phase NUMBER      one phase of a run (0 to 4)
"""

import json
import os
import random
import sys
import time

import market
from tally import Tally


def load(directory, phase):
    with open(os.path.join(directory, phase + ".json")) as f:
        return json.load(f)


def save(directory, phase, doc):
    with open(os.path.join(directory, phase + ".json"), "w") as f:
        json.dump(doc, f, indent=1)


def analyse(phase, names, seed):
    """Stands for the analysis: figures of the right kind and number, always four digits."""
    figures = random.Random(seed)
    fields = market.FIELDS[phase]
    return {name: {field: figures.randrange(1000, 10000) for field in fields} for name in names}


def run_phase(directory, symbols, number, run, tally):
    """One phase. False where the file of the phase before could not be used: the run ends."""
    phase = market.PHASES[number]
    if number == 0:
        names = [market.symbol(n) for n in range(symbols)]
    else:
        previous = market.PHASES[number - 1]
        doc = tally.read(lambda: load(directory, previous), previous)
        if doc is None:
            return False
        names = list(doc["symbols"])
    result = market.document(run, phase, analyse(phase, names, run))
    try:
        save(directory, phase, result)
    except OSError as error:
        tally.error(error)
        return False
    return True


def main():
    directory, symbols, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    tally = Tally()
    runs = 0

    def run_id():
        return f"{os.getpid():010d}-{runs:06d}"

    if mode == "phase":
        run_phase(directory, symbols, int(sys.argv[4]), run_id(), tally)
    else:
        end = time.monotonic() + (float(sys.argv[4]) if mode == "until" else 0)
        while runs == 0 or time.monotonic() < end:
            runs += 1
            if all(run_phase(directory, symbols, number, run_id(), tally) for number in range(len(market.PHASES))):
                tally.counts["runs"] += 1
    tally.report()


main()
