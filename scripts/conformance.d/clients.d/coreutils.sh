# packages: coreutils util-linux
# cp, mv, install, dd, truncate, fallocate, sort, split, shred, touch, stat.
cp -a --reflink=auto src copy
cp -a --sparse=always src/sparse src/big "$OUT"
cp -a "$OUT/big" back
cp -al src linked
cp -rp --backup=numbered src/. copy
cp -a --remove-destination src/run copy/run
cp --preserve=all --attributes-only src/run f
cp -u src/long copy/long
mkdir moved
mv copy "$OUT/away"
mv "$OUT/away" moved/again
mv -T moved/again moved/then
mv -n src/run moved/then/run
mv -b f moved/then/long
mv --exchange back moved/then/long 2>/dev/null || echo 'mv has no --exchange'
install -m 751 src/run bin
install -D -p -m 600 src/long a/b/c
install -b -S .old src/run bin
install -C -m 751 src/run bin
dd if=/dev/zero of=moved/then/big bs=1000 count=3 seek=7 conv=fsync,notrunc status=none
dd if=src/big of=direct bs=4096 count=100 iflag=direct oflag=direct status=none
dd if=src/big of=sync bs=64k oflag=dsync status=none
dd if=src/big of=sync bs=64k seek=60 conv=sparse,notrunc status=none
truncate -s 12345 bin && truncate -s +100 bin && truncate -s %4096 bin && truncate -r src/long other
fallocate -l 1M room && fallocate -p -o 64k -l 512k room && fallocate -z -o 4k -l 300k room && fallocate -n -l 2M room
head -c 2M /dev/zero >zeros && fallocate -d zeros
sort -rn -o src/long src/long && sort -u -o src/long src/long src/long
split -b 700k src/big part. && cat part.* | cmp - src/big && rm part.*
echo secret >shredded && shred -u shredded
touch -r src/run -m bin && touch -a -d '2001-02-03 04:05:06.7' bin && stat -c %x bin
touch -h -d 2002-02-02 src/link && touch -c nothing
ln -f bin src/bin && ln -sf bin src/link && ln -srf src/run rel
tee -a src/long other <f.none 2>/dev/null || echo x | tee -a src/long other
chmod -R g+w src/deep && chmod u=rwx,go= bin && chmod +t src/deep
cmp src/sparse linked/sparse && sum src/big && md5sum src/long
rm -rf linked moved/then/deep
mkdir -m 1777 tmp && mktemp -p tmp >/dev/null && rm -r tmp
du -s --apparent-size src | cut -f1 | grep -c .
readlink -f src/link | sed "s,$PWD,," && realpath --relative-to=. src/deep
find src -newer src/run -type f | sort
find . -samefile src/bin | sort
find src -links +1 -type f | sort
