# packages: logrotate python3
# Logs: a program that appends while logrotate renames the log, or copies and truncates it.
write() { # FILE LINES: one line an open, or all by one descriptor
    python3 - "$@" <<'PY'
import sys, time
name, lines = sys.argv[1], int(sys.argv[2])
with open(name, "a") as log:
    for n in range(lines):
        log.write(f"line {n}\n")
        log.flush()
PY
}
rotate() { /usr/sbin/logrotate -f -s "$PWD/state" "$OUT/conf"; }
printf '%s/create.log { rotate 5\n create 640\n nocompress\n missingok\n su %s %s\n }\n' "$PWD" "$(id -un)" "$(id -gn)" >"$OUT/conf"
printf '%s/copied.log { rotate 5\n copytruncate\n nocompress\n su %s %s\n }\n' "$PWD" "$(id -un)" "$(id -gn)" >>"$OUT/conf"
printf '%s/packed.log { rotate 5\n compress\n create 600\n su %s %s\n }\n' "$PWD" "$(id -un)" "$(id -gn)" >>"$OUT/conf"
chmod 644 "$OUT/conf" && chmod 755 .
for round in 1 2 3; do
    for log in create copied packed; do write $log.log 500; done
    rotate
done
for log in create copied packed; do write $log.log 10; done
cat create.log* | wc -l && cat copied.log* | wc -l && { cat packed.log && zcat packed.log.*.gz; } | wc -l
rm -f state packed.log*.gz "$OUT/conf"
# Python's own rotating handlers, by size.
python3 - <<'PY'
import logging, logging.handlers, os
handler = logging.handlers.RotatingFileHandler("own.log", maxBytes=2000, backupCount=3)
logger = logging.getLogger("probe"); logger.addHandler(handler)
for n in range(500):
    logger.warning("message %d", n)
handler.close()
watched = logging.handlers.WatchedFileHandler("watched.log")
other = logging.getLogger("other"); other.addHandler(watched)
for n in range(20):
    other.warning("message %d", n)
    if n == 10:
        os.rename("watched.log", "watched.log.1")
watched.close()
PY
wc -l own.log* watched.log*
