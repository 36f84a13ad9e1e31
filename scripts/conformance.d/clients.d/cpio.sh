# packages: cpio
# cpio: out, in, and pass with links.
find src f -depth -print0 | cpio -0 -o -H newc --quiet >"$OUT/a.cpio"
find src f -depth -print0 | cpio -0 -o -H newc --quiet >a.cpio
mkdir in out pass links
(cd in && cpio -idm --quiet <"$OUT/a.cpio")
(cd out && cpio -idm --quiet <../a.cpio && cpio -idmu --quiet <../a.cpio)
find src f -depth -print0 | cpio -0 -pdm --quiet pass
find src f -depth -print0 | cpio -0 -pdml --quiet links
find src f -depth -print0 | cpio -0 -pdmu --quiet pass
rm a.cpio "$OUT/a.cpio"
