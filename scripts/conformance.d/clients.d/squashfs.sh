# packages: squashfs-tools
# A program of many threads, one of which reads what another writes.
mksquashfs src/deep sq.img -quiet -no-progress -no-xattrs >/dev/null && unsquashfs -q -n -d un sq.img >/dev/null && find un | wc -l
rm -rf un sq.img
