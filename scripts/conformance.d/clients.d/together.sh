# packages: util-linux findutils python3
# Many at once: flock(1) loops, a file each by xargs -P, appends to one file.
mkdir many
turns=25 many=400 some=200 few=100
if [ -n "$FAST" ]; then turns=8 many=80 some=40 few=20; fi
count() { # increments a number under a lock
    for n in $(seq $turns); do
        flock "$1" sh -c 'read -r n <"$0" || n=0; echo $((n + 1)) >"$0"' "$2"
    done
}
echo 0 >number
for p in 1 2 3 4; do count lock number & done
wait && cat number
echo 0 >number2 && mkdir lockdir
for p in 1 2 3; do count lockdir number2 & done
wait && cat number2
flock -n lock true && echo free && flock -s lock flock -s -n lock echo shared
flock lock sh -c 'flock -n lock2 true && echo other; flock -n lock true || echo taken'
(exec 9<>lock3 && flock 9 && echo held && echo inside >many/inside) && flock -n lock3 true && echo released
seq $many | xargs -P 8 -I N sh -c 'echo N >many/N; cat many/N >many/N.copy; mv many/N.copy many/N.moved'
find many -type f | wc -l && cat many/*.moved | sort -n | tail -1 && ls many | sort | md5sum
seq $some | xargs -P 8 -I N sh -c 'echo "line N" >>all'
sort -u all | wc -l && wc -l <all
seq $few | xargs -P 8 -I N sh -c 'printf "%s\n" N N N N >same'
sort -u same | wc -l && wc -l <same
seq $some | xargs -P 8 -I N sh -c 'mkdir -p many/d/N && touch many/d/N/f && rm -r many/d/N'
ls -A many/d
seq $few | xargs -P 4 -I N sh -c 'ln many/1 many/l.N && mv many/l.N many/m.N && rm many/m.N'
stat -c %h many/1
seq $some | xargs -P 8 -I N sh -c 'mkdir many/only 2>/dev/null && echo N || true' | wc -l
seq $some | xargs -P 8 -I N sh -c 'set -C; echo N 2>/dev/null >many/excl && echo won || true' 2>/dev/null | wc -l
rm many/excl all same
