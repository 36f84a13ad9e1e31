# packages: attr acl libcap2-bin e2fsprogs util-linux
# What programs set and ask of attributes: ACLs, capabilities, flags, times, owners; hardlink(1), find.
setfacl -m u:3:rw,g:4:r,m::rwx f && getfacl -n f && setfacl -x u:3 f && getfacl -nc f && setfacl -b f && getfacl -nc f
setfacl -R -m u:5:rX src/deep && getfacl -nR src/deep && setfacl -k src/deep
mkdir dd && setfacl -d -m u:6:rwx,g::rx,o::- dd && (umask 077 && mkdir dd/sub && echo x >dd/file) && getfacl -nR dd
echo more >>dd/file && echo new >dd/file && getfacl -nc dd/file
getfacl -nR src >acls && setfacl -Rb src && setfacl --restore=acls && getfacl -nR src | cmp - acls && echo restored
chmod g-w dd/file && getfacl -nc dd/file && chmod 777 dd/file && getfacl -nc dd/file
setfattr -n user.long -v "$(head -c 2000 /dev/zero | tr '\0' v)" f && getfattr --only-values -n user.long f | wc -c
getfattr -Rdm - src | grep -v '^#' | sort | md5sum && setfattr -x user.long f && setfattr -x user.long f 2>/dev/null || echo gone
echo again >f && setfattr -n user.a -v b f && sed -i s/a/b/ f && getfattr -dm - f
printf 'same\n' | tee one two three >/dev/null && touch -d 2020-02-02 one two three && hardlink -q . 2>/dev/null >/dev/null || true
stat -c '%n %h' one two three
echo changed >>one && cat two three && stat -c '%h %s' three
[ "$(stat -c %i one)" = "$(stat -c %i two)" ] && echo 'one inode'
before=$(stat -c '%i %W' src/run) && chmod 711 src/run && touch src/run && [ "$before" = "$(stat -c '%i %W' src/run)" ] && echo 'same inode and birth'
inode=$(stat -c %i src/run) && echo x >>src/run && echo y >src/run && [ "$inode" = "$(stat -c %i src/run)" ] && echo 'same inode still'
stat -f -c '%T %s %S %l' . | cut -d' ' -f2-3,4
df --output=size . | tail -1
find . -perm -2000 -o -perm /4000 | sort && find . -type d -empty | sort && find . -size +1M | sort
if [ "$(id -u)" = 0 ]; then
    setcap cap_net_raw,cap_chown+ep bin 2>/dev/null || cp f bin && setcap cap_net_raw,cap_chown+ep bin && getcap bin
    chown 1:2 f && chmod 6755 f && chown 3:4 f && stat -c %a f && chown -R 1:1 src/deep && chgrp -h 7 src/link
    chmod 6755 f && setpriv --reuid 3 --regid 4 --clear-groups sh -c 'echo x >>f' && stat -c %a f
    setfattr -n trusted.a -v b f && getfattr -n trusted.a --only-values f && echo
    mkdir sgid && chgrp 9 sgid && chmod 2775 sgid && touch sgid/f && mkdir sgid/d && stat -c '%g %a' sgid/f sgid/d
fi
mkfifo p && (echo through >p & cat p) && rm p
python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("sock"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect("sock"); print("connected")' && stat -c %F sock && rm sock
