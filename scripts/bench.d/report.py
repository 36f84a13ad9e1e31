"""What scripts/bench says: Markdown, to standard output or between the marks of a document."""

import os
import platform
import re

import fsmount
import places
import rows

SCALE = {"us": 1e6, "ms": 1e3}


HALT_POLL = "/sys/module/haltpoll/parameters/guest_halt_poll_ns"


def halt_poll():
    """What idle processors of a virtual machine do before they leave it, if that is known."""
    try:
        with open(HALT_POLL) as f:
            limit = int(f.read())
    except OSError:
        return ""
    return f"; idle processors poll for up to {limit // 1000} us" if limit else "; idle processors do not poll"


def machine(where, options):
    model = platform.machine()
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cpus = len(os.sched_getaffinity(0))
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    peer = os.path.basename(options.passthrough or "")
    return (f"{model}, {cpus} CPUs, Linux {platform.release()}; {fsmount.filesystem_of(where)}"
            f"{'' if options.fs == 'disk' else ' on a loop device'}{halt_poll()}; load {load} at the start; "
            f"median of {options.rounds} rounds{f'; passthrough is {peer}' if peer else ''}"
            + ("; QUICK, the numbers mean nothing" if options.quick else ""))


def shown(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def line(row, part, of, targets):
    scale = SCALE.get(row.unit, 1)
    bare = of.get("bare", {}).get(part)
    cells = [str(row.number), f"{row.name}{'' if part in ('median', *row.shown[:1]) else ' ' + part}", row.unit]
    for target in targets:
        if part not in of.get(target, {}):
            cells.append("")
            continue
        value, least, most = (number * scale for number in of[target][part])
        cells.append(f"{shown(value)} ({shown(least)}-{shown(most)})")
    for target in targets:
        if target.startswith("latchfs"):
            ratio = of[target][part][0] / bare[0] if bare and bare[0] and part in of.get(target, {}) else None
            cells.append("" if ratio is None else f"{ratio:.2f}")
    wanted = row.target.get(part)
    cells.append("" if wanted is None else f"{'≤' if row.less_is_better() else '≥'} {wanted}")
    return "| " + " | ".join(cells) + " |"


def table(results, targets, about):
    head = ["", "row", "unit", *targets, *(f"{t} / bare" for t in targets if t.startswith("latchfs")), "target"]
    lines = [about + ":", "", "| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    for name, of in results.items():
        row = rows.ROWS[name]
        lines += [line(row, part, of, targets) for part in row.shown]
    lines += ["", "In brackets the least and the most of the rounds. us, ms, s, MiB, KiB: less is better; the others: more is.",
              ""]
    lines += [f"- {name}: {rows.ROWS[name].text}" for name in results]
    lines += [f"- {target}: {places.TEXTS[target]}" for target in targets]
    return "\n".join(lines)


def put(document, name, text):
    """Into a document between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, or to standard output."""
    if not document:
        print("\n" + text)
        return
    with open(document, encoding="utf-8") as f:
        old = f.read()
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in old or end not in old:
        raise fsmount.Failed(f"{document} has no lines '{begin}' and '{end}'")
    new = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL)
    with open(document, "w", encoding="utf-8") as f:
        f.write(new)
