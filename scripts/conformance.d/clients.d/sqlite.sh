# packages: python3 sqlite3
# sqlite3 from two processes, in every journal mode: no row lost, integrity kept; the same when one of
# them is killed again and again.
cat >"$OUT/writer.py" <<'PY'
import sqlite3, sys
path, mode, who, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"pragma journal_mode={mode}")
for n in range(count):
    db.execute("begin immediate")
    db.execute("insert into t (who, n, pad) values (?, ?, ?)", (who, n, "x" * 500))
    db.execute("update total set rows = rows + 1")
    db.execute("commit")
    if who == "loud":
        print(n, flush=True)
db.close()
PY
schema='create table t (id integer primary key, who text, n int, pad text); create table total (rows int); insert into total values (0);'
many=60 few=40 modes='delete truncate persist wal'
if [ -n "$FAST" ]; then many=12 few=8 modes='delete wal'; fi
for mode in $modes; do
    sqlite3 $mode.db "pragma journal_mode=$mode; $schema"
    python3 "$OUT/writer.py" $mode.db $mode a $many & first=$!
    python3 "$OUT/writer.py" $mode.db $mode b $many
    wait $first
    sqlite3 $mode.db 'select who, count(*), count(distinct n) from t group by who; select rows from total; pragma integrity_check'
    # One is killed in the middle, after ten that it was told are there.
    python3 "$OUT/writer.py" $mode.db $mode quiet $many & other=$!
    for round in 1 2 3; do
        sqlite3 -cmd '.timeout 60000' $mode.db "delete from t where who = 'loud'; update total set rows = (select count(*) from t)" || true
        coproc python3 "$OUT/writer.py" $mode.db $mode loud 100000
        victim=$COPROC_PID
        for n in $(seq 10); do read -r line <&"${COPROC[0]}"; done
        kill -KILL $victim
        wait $victim 2>/dev/null || true
        sqlite3 -cmd '.timeout 60000' $mode.db "pragma integrity_check; select count(*) >= 10, max(n) + 1 = count(*) from t where who = 'loud'; select rows - (select count(*) from t) from total"
    done
    wait $other
    sqlite3 $mode.db "pragma integrity_check; select count(*) from t where who = 'quiet'; vacuum; pragma integrity_check"
    # A backup while it is written, by the shell and by Python.
    python3 "$OUT/writer.py" $mode.db $mode c $few & other=$!
    sqlite3 -cmd '.timeout 60000' $mode.db '.backup copy.db' && sqlite3 copy.db 'pragma integrity_check'
    wait $other
    rm -f $mode.db $mode.db-* copy.db*
done
# Many short connections, as a web application makes them.
sqlite3 app.sqlite 'pragma journal_mode=wal; create table hits (n int); insert into hits values (0)'
seq $many | xargs -P 6 -I N sqlite3 -cmd '.timeout 60000' app.sqlite 'begin immediate; update hits set n = n + 1; commit'
sqlite3 app.sqlite 'select n from hits; pragma integrity_check; pragma journal_mode=delete'
ls app.sqlite*
rm app.sqlite
