# packages: tar attr acl
# GNU tar: with all attributes, with holes, over existing files, appended to, incrementally.
tar -c --acls --xattrs --xattrs-include='*' --sparse -f "$OUT/all.tar" src f
tar -c --acls --xattrs --xattrs-include='*' --sparse -f all.tar src f
mkdir from-outside from-inside
tar -xp --acls --xattrs --xattrs-include='*' --same-owner -f "$OUT/all.tar" -C from-outside
tar -xp --acls --xattrs --xattrs-include='*' --same-owner -f all.tar -C from-inside
tar -d --acls --xattrs -f all.tar && echo 'no difference'
rm "$OUT/all.tar"
tar -d --acls --xattrs -f all.tar -C from-inside && echo 'nor in the copy'
tar -xpf all.tar -C from-outside --overwrite --exclude=src/empty
tar -xpf all.tar -C from-inside --unlink-first --recursive-unlink
tar -xpf all.tar -C from-inside --keep-newer-files --warning=none --exclude=src/empty
rm all.tar
tar -czf t.tgz src/long src/big && tar -xzf t.tgz -C from-outside && rm t.tgz
tar -cf t.tar f && tar -rf t.tar src/long && tar -uf t.tar f src/run && tar --delete -f t.tar f && tar -tf t.tar
rm t.tar
# Only what changed since: tar looks at times, at device and inode numbers.
mkdir inc
cp -a src/long src/run inc
tar -c -g snap -f 0.tar inc
echo more >>inc/long
tar -c -g snap -f 1.tar -v inc
tar -c -g snap -f 2.tar -v inc
mv inc/run inc/ran
tar -c -g snap -f 3.tar -v inc
rm -r inc snap
for n in 0 1 2 3; do tar -x -g /dev/null -f $n.tar; done
rm [0-3].tar
