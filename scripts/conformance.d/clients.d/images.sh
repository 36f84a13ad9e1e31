# packages: e2fsprogs util-linux fdisk mount
# File system images made, checked and looked into; swap headers; partition tables.
truncate -s 16M disk.img
/sbin/mkfs.ext4 -q -F -U 00000000-0000-0000-0000-000000000001 -d src/with\ space disk.img
/sbin/e2fsck -fn disk.img >/dev/null 2>&1 && /sbin/debugfs -R 'ls -p /' disk.img 2>/dev/null | grep -c line
/sbin/tune2fs -L label disk.img >/dev/null && /sbin/resize2fs disk.img 12M >/dev/null 2>&1 && /sbin/e2fsck -fn disk.img >/dev/null 2>&1 && echo resized
truncate -s 8M table.img && printf 'label: dos\nlabel-id: 1\n,4M\n,,\n' | /sbin/sfdisk -q table.img
/sbin/sfdisk -d table.img | grep -c start=
if [ "$(id -u)" = 0 ]; then
    mkdir mnt && mount -o loop disk.img mnt && echo x >mnt/f && sync -f mnt/f && umount mnt && /sbin/e2fsck -fn disk.img >/dev/null 2>&1 && echo clean
    rmdir mnt
fi
rm -f ./*.img
