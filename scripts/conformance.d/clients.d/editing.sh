# packages: moreutils patch sed perl mawk jq ed diffutils
# What rewrites its own input: sponge, patch, sed, perl, ed, awk, jq.
sort -n f | sponge f && sponge -a f <src/long
sed -i 's/1/one/g' f && sed -i.bak 2d src/long && sed -i --follow-symlinks 1d src/link
perl -pi -e 's/5/five/' f && perl -i.orig -ne 'print unless /3/' src/long
printf '1d\n$a\nlast\n.\nw\nq\n' | ed -s f
awk "{ print NR, \$0 }" src/long >src/long.new && mv src/long.new src/long
cp f g && sed -i 3d g
diff -u --label f --label f f g >p || true
patch -s f <p && patch -s -R f <p && patch -sb f <p && cmp f g
patch -s --dry-run -R f <p && patch -s -R -o h f <p
git diff --no-index --no-prefix f h >p2 || true
git apply -p0 --unsafe-paths p2 2>/dev/null || patch -s f <p2
echo '{"a": [1, 2, {"b": null}]}' >d.json
for n in $(seq 20); do jq --argjson n "$n" '.a += [$n]' d.json | sponge d.json; done
jq -c . d.json && jq '.a | length' d.json >d.json.new && mv d.json.new n.json
jq . d.json | tee copy.json | wc -l
iconv -f utf-8 -t utf-16 f -o f && iconv -f utf-16 -t utf-8 f -o f && tail -1 f
gzip -9 src/long && gunzip -k src/long.gz && zcat src/long.gz | cmp - src/long
xz -k f && xz -d -c f.xz | cmp - f
bzip2 -k f && bunzip2 -c f.bz2 | cmp - f
rm -f *.xz *.bz2 src/*.gz
