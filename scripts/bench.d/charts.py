"""The charts of docs/performance.md, by gnuplot."""

import os
import statistics
import subprocess
import sys

import rows

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(os.path.dirname(os.path.dirname(HERE)), "docs")
STYLE = """
set terminal svg size 900,500 font "sans,13" background "white"
set key left top
set grid
set style line 1 lw 2
"""
THREADS = (1, 2, 4, 8, 16, 32, 64)
PARTS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


def plot(file, script, curves):
    """`curves`: {title: [(x, y), ...]}"""
    data = "".join(f"$d{number} << EOD\n" + "".join(f"{x} {y}\n" for x, y in points) + "EOD\n"
                   for number, points in enumerate(curves.values(), 1))
    lines = ", ".join(f'$d{number} with linespoints lw 2 title "{title}"' for number, title in enumerate(curves, 1))
    out = os.path.join(DOCS, file)
    subprocess.run(["gnuplot"], input=f"{STYLE}set output '{out}'\n{data}{script}\nplot {lines}\n", text=True, check=True,
                   timeout=120)
    print(f"wrote {out}", file=sys.stderr)


def make(places, options):
    times = 10 if options.quick else 400
    samples, rates = {}, {}
    for number in range(options.rounds):
        for target, place in places.items():
            print(f"round {number + 1} of {options.rounds}: {target}", file=sys.stderr, flush=True)
            said = place.work("update", place.path("full", "updated"), 4096, times, place.mode())
            samples.setdefault(target, []).extend(said["ns"])
            for threads in THREADS[:2] if options.quick else THREADS:
                rate = rows.writers(place, threads, max(times // 10 // threads * 4, 2))["per_s"]
                rates.setdefault(target, {}).setdefault(threads, []).append(rate)
    latencies = {target: [(part * 100, sorted(all_)[int(len(all_) * part)] / 1e3) for part in PARTS]
                 for target, all_ in samples.items()}
    plot("update-latency.svg", """
set title "Atomic, durable update of 4 KiB: latency by percentile"
set xlabel "percentile"
set ylabel "microseconds"
set logscale y
""", latencies)
    plot("update-throughput.svg", """
set title "Atomic, durable updates of 4 KiB, each writer its own file"
set xlabel "writers"
set ylabel "updates per second"
set logscale x 2
set yrange [0:*]
""", {target: [(threads, statistics.median(of)) for threads, of in sorted(by.items())] for target, by in rates.items()})
