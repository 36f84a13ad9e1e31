# packages: python3
# Programs that keep their logs open, as daemons do, while others read, copy and truncate them.
python3 - <<'PY'
import os, subprocess, sys
logs = {name: open(name, "a") for name in ("create.log", "copied.log", "packed.log")}
for n in range(300):
    for log in logs.values():
        log.write(f"{n}\n")
        log.flush()
    if n == 100 or n == 200:
        # A log that is renamed is opened again, as after SIGHUP.
        if n == 100:
            subprocess.run(["cp", "copied.log", "copied.before"], check=True)
            os.rename("create.log", "create.log.1")
            logs["create.log"].close()
            logs["create.log"] = open("create.log", "a")
        os.truncate("copied.log", 0)
for log in logs.values():
    log.close()
print({name: sum(1 for _ in open(name)) for name in sorted(os.listdir()) if ".log" in name or name == "copied.before"})
PY
