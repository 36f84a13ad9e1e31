# packages: git
# git on a repository of hundreds of files: clones with hard links, gc, fsck, rebase, stash, worktrees,
# two processes committing; and a status that is clean right after everything (the index holds inode
# numbers, ctimes and mtimes).
export GIT_AUTHOR_DATE=2020-01-02T03:04:05Z GIT_COMMITTER_DATE=2020-01-02T03:04:05Z
clean() { # by the index alone: no file may even be read again
    git -C "$1" status --porcelain
    git -C "$1" diff-files --quiet || echo "$1: stat data differ: $2"
}
git config --global init.defaultBranch main
mkdir repo && cd repo && git init -q -b main
dirs=20 commits=15
if [ -n "$FAST" ]; then dirs=5 commits=4; fi
for d in $(seq $dirs); do
    mkdir -p dir$d/sub
    for n in $(seq 15); do echo "$d $n" >dir$d/file$n; seq $((d * n)) >dir$d/sub/n$n; done
done
git add . && git commit -qm one && clean . commit
for n in $(seq 5); do echo "change $n" >>dir$n/file1; git commit -qam "change $n"; done
clean . commits
git checkout -qb side HEAD~3 && clean . checkout
echo side >side && git add side && git commit -qm side && git rebase -q main && clean . rebase
git checkout -q main && git merge -q --no-edit side && clean . merge
echo x >>dir1/file1 && git stash -q && clean . stash && git stash pop -q && git status --porcelain && git checkout -q . && clean . restore
git worktree add -q ../tree side 2>/dev/null || git worktree add -q -b other ../tree && clean ../tree worktree
git rm -rq dir$dirs && git commit -qm removed && git revert --no-edit HEAD >/dev/null && clean . revert
git mv dir1 moved && git commit -qm moved && clean . mv
git clone -q --local . ../local && git -C ../local fsck --full --strict 2>&1 | grep -Ev '^(notice|dangling)' || true
find ../local/.git/objects -type f -links 2 -print -quit | grep -q . && echo 'objects are hard links'
git clone -q --no-local . ../remote && clean ../remote clone && clean ../local local
git gc -q --prune=now && git fsck --full 2>&1 | grep -Ev '^(notice|dangling)' || true
clean . gc
git -C ../local repack -qad && git -C ../local fsck --full 2>&1 | grep -Ev '^(notice|dangling)' || true
git -C ../remote push -q origin HEAD:refs/heads/pushed 2>&1 && git rev-parse --verify -q pushed | wc -l
git -C ../local pull -q --ff-only && clean ../local pull
git archive HEAD | tar -t | wc -l
git bundle create -q ../b.bundle --all && git clone -q -b main ../b.bundle ../bundled && clean ../bundled bundle
git tag -a -m t t && git pack-refs --all && git for-each-ref | wc -l
git update-index --refresh && git sparse-checkout set dir2 dir3 && ls && git sparse-checkout disable && clean . sparse
# Two at once: whoever does not get the index lock tries again.
committer() {
    for n in $(seq $commits); do
        echo "$n" >"$1.$n"
        # Both again: git commit PATH reads the index before it locks it, and may undo an add.
        until { git add "$1.$n" && git commit -qm "$1 $n" -- "$1.$n"; } 2>/dev/null; do sleep 0.02; done
    done
}
committer a & first=$!
committer b & wait $! && wait $first
git log --format=%s | grep -c '^[ab] ' && ls [ab].* | wc -l && clean . 'two committers'
git fsck --full --strict 2>&1 | grep -Ev '^(notice|dangling)' || true
git count-objects -v | grep garbage
cd .. && rm -rf repo/.git local/.git remote/.git bundled/.git tree/.git b.bundle
