#!/usr/bin/env python3
"""The pipeline of examples/analysis.rs as a program that knows nothing of latchfs.

usage: examples/pipeline.py DIR

In a latchfs mount it needs nothing more than this: each file appears whole when it is closed.
`latchfs phases --wait DIR` returns when it is done.
"""

import json
import os
import sys

PHASES = ["stock_universe", "technical_analysis", "fundamental_analysis",
          "sentiment_analysis", "final_rankings"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    symbols = ["AAPL", "MSFT", "NVDA"]
    for phase in PHASES:
        with open(os.path.join(sys.argv[1], phase + ".json"), "w") as file:
            json.dump({"phase": phase, "symbols": symbols}, file, indent=2)


main()
