# packages: rsync acl attr diffutils
# rsync into the mount, out of it and within it; after each, nothing is left to send.
copy() { # FROM TO OPTION...
    local from=$1 to=$2
    shift 2
    rsync -aHAX "$@" "$from" "$to"
    echo "left to send ($*):"
    rsync -aHAXni --checksum --delete "$from" "$to"
    rsync -aHAXni --delete "$from" "$to"
}
copy src/ "$OUT/out/"
copy "$OUT/out/" in/
copy src/ within/
copy src/ sparse/ -S
copy src/ inplace/ --inplace
for n in in within sparse inplace; do
    printf 'more\n' >>src/long
    printf 'CHANGED' | dd of=src/big bs=1 seek=1000000 conv=notrunc status=none
    chmod 700 src/run
done
copy src/ "$OUT/out/" --no-whole-file
copy "$OUT/out/" in/ --delay-updates --no-whole-file
copy src/ within/ --fuzzy --partial --no-whole-file
copy src/ sparse/ -S --checksum
copy src/ inplace/ --inplace --no-whole-file
copy src/ within/ --backup --suffix=.old --exclude='*.old'
printf 'appended\n' >>src/big
rsync -aHAX --append src/ inplace/ && cmp src/big inplace/big
printf 'appended again\n' >>src/big
rsync -aHAX --append-verify src/ inplace/ && cmp src/big inplace/big
rm src/deep/hard src/empty
mv src/big src/bigger
copy src/ in/ --delete --fuzzy --delay-updates
copy src/ within/ --delete-after --temp-dir="$PWD" --exclude='*.old'
rsync -aHAX --link-dest="$PWD/in" src/ linked/ && rsync -aHAXni --delete src/ linked/
rsync -aHAX --remove-source-files in/with\ space moved/
# A transfer that is broken off leaves its part, and the next goes on from there.
# (cat: until the last of its processes is gone, of which the receiver has only this stderr. In any directory,
# it would else rename what it has over what the next is writing.)
{ timeout -s TERM 1 rsync -a --partial --bwlimit=500 src/bigger part/ 2>&1 || true; } | cat >/dev/null
rsync -a --partial --append-verify src/bigger part/ && cmp src/bigger part/bigger
