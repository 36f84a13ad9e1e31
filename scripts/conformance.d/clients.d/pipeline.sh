# packages: python3
# Five phases write their JSON files by plain open("w") and json.dump, with a subprocess in the middle
# of one; threads of a server read them all the while. In the mount no read is torn or empty.
PROTECTED=$PROTECTED python3 - <<'PY'
import http.client, http.server, json, os, subprocess, sys, threading, urllib.request
phases = [f"phase{n}_output.json" for n in range(1, 6)]
def document(phase, turn):
    return {"phase": phase, "turn": turn, "rows": [{"id": n, "value": turn * n} for n in range(400)], "end": turn}
def write(phase, turn):
    with open(phase, "w") as file:
        json.dump(document(phase, turn), file)
        if phase.startswith("phase3"):
            subprocess.run(["true"], check=True)
            file.write("\n")
for phase in phases:
    write(phase, 0)
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
over, torn, reads = threading.Event(), [], [0]
def reader(fetch):
    while not over.is_set():
        for phase in phases:
            reads[0] += 1
            text = ""
            try:
                text = fetch(phase)
                seen = json.loads(text)
                assert seen["turn"] == seen["end"] and len(seen["rows"]) == 400
            except (ValueError, AssertionError, http.client.HTTPException) as error:
                torn.append((phase, len(text), str(error)))
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
base = f"http://127.0.0.1:{server.server_port}/"
def by_http(phase):
    with opener.open(base + phase, timeout=30) as answer:
        return answer.read().decode()
def by_file(phase):
    with open(phase) as file:
        return file.read()
threads = [threading.Thread(target=reader, args=(how,)) for how in (by_http, by_file, by_file)]
for thread in threads: thread.start()
for turn in range(1, 12):
    for phase in phases:
        # The pipeline is a program of its own.
        subprocess.run([sys.executable, "-c", f"""
import json, subprocess
with open({phase!r}, 'w') as file:
    json.dump(json.load(open({phases[0]!r})) | dict(phase={phase!r}, turn={turn}, end={turn}) if {phase!r} != {phases[0]!r}
              else {document(phase, turn)!r}, file)
    if {phase!r}.startswith('phase3'):
        file.flush(); subprocess.run(['true'], check=True); file.write(chr(10))
"""], check=True)
over.set()
for thread in threads: thread.join()
assert reads[0] > 50, reads
if os.environ["PROTECTED"] == "1":
    assert not torn, torn[:3]
print([json.load(open(phase))["turn"] for phase in phases])
PY
