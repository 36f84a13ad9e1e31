"""Measures latchfs mounts against the bare directory and against other mirrors, interleaved.

Started by scripts/bench, whose header says what the options mean.
"""

import argparse
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import charts  # noqa: E402
import fsmount  # noqa: E402
import locks_of  # noqa: E402
import places  # noqa: E402
import report  # noqa: E402
import requests_of  # noqa: E402
import rows  # noqa: E402


def measure(names, all_places, rounds):
    """{row: {target: {number: [one per round]}}}"""
    results = {name: {} for name in names}
    targets = list(all_places)
    for number in range(rounds):
        # Each target goes first as often as the others.
        first = number % len(targets)
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            for target in targets[first:] + targets[:first]:
                if target not in rows.ROWS[name].on:
                    continue
                try:
                    said = rows.ROWS[name].measure(all_places[target])
                except fsmount.Failed as failure:
                    if all_places[target].latchfs or target == "bare":
                        raise
                    # Another mirror's limit (passthrough_ll holds a descriptor for every file) ends no run.
                    print(f"left out: {name}: {failure}", file=sys.stderr)
                    continue
                for part, value in said.items():
                    results[name].setdefault(target, {}).setdefault(part, []).append(value)
    return results


def middle(results):
    return {name: {target: {part: (statistics.median(values), min(values), max(values))
                            for part, values in parts.items()} for target, parts in of.items()}
            for name, of in results.items()}


def options():
    parser = argparse.ArgumentParser(prog="scripts/bench", add_help=False)
    parser.add_argument("--row", action="append", choices=list(rows.ROWS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--targets")
    parser.add_argument("--fs", default="disk", choices=("disk", "ext4", "xfs", "btrfs"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--charts", action="store_true")
    parser.add_argument("--requests", action="store_true")
    parser.add_argument("--locks", action="store_true")
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--mark")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--user")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 5)
    given.latchfs = os.environ["LATCHFS"]
    given.targets = given.targets.split(",") if given.targets else list(places.TARGETS)
    unknown = set(given.targets) - set(places.TARGETS)
    if given.rounds < 1 or unknown:
        parser.error(f"--rounds must be positive, --targets some of {','.join(places.TARGETS)}")
    return given


def main():
    given = options()
    with fsmount.workspace(given.dir, "bench") as base:
        os.chmod(base, 0o755)
        given.tool = places.build_tool(base)
        given.passthrough = places.build_passthrough(base) if "passthrough" in given.targets else None
        missing = [] if given.passthrough else ["passthrough"]
        if os.geteuid() != 0 or not given.user:
            missing.append("latchfs-user")
        for target in set(missing) & set(given.targets):
            print(f"not measured: {target} (libfuse3-dev, pkg-config and a compiler, or root, are missing)", file=sys.stderr)
        given.targets = [target for target in given.targets if target not in missing]
        if given.requests:
            return report.put(given.write, "requests", requests_of.table(base, given))
        with places.image(base, given.fs, 16 << 30) as where:
            if given.locks:
                return report.put(given.write, "locks", locks_of.table(base, where, given))
            about = report.machine(where, given)
            all_places = places.make(base, where, given)
            if given.charts:
                charts.make(all_places, given)
            else:
                names = [name for name in rows.ROWS if not given.row or name in given.row]
                results = middle(measure(names, all_places, given.rounds))
                report.put(given.write, given.mark or given.fs, report.table(results, given.targets, about))
            places.unmount(all_places, given)


if __name__ == "__main__":
    try:
        main()
    except fsmount.Failed as failure:
        sys.exit(f"bench: {failure}")
