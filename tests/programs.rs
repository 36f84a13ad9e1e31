//! Programs that know nothing of latchfs. Each script runs in the mount and in a bare directory,
//! and must print the same and leave the same files, in the mount and in BACKING.

mod common;

use common::{Mount, User, finish, options, text};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// What the scripts work on.
const SETUP: &str = "set -e; umask 022; mkdir -p src/deep/er; seq 5 -1 1 > f; seq 1000 > src/long; \
     printf 'no newline' > src/deep/er/short; : > src/empty; ln -s ../f src/link; \
     printf '#!/bin/sh\\necho ran\\n' > src/run; chmod 750 src/run; \
     head -c 3000000 /dev/urandom > src/big; touch -d '2020-01-02 03:04:05' src/long src/deep";

/// Prints all files: type, mode, links, size, and then the content.
const TREE: &str = "find . -path ./.latchfs -prune -o -path ./.git -prune -o ! -type d -printf '%P %y %m %n %s %l\\n' -o \
     -printf '%P %y %m\\n' | sort; \
     find . -path ./.latchfs -prune -o -path ./.git -prune -o -type f -print0 | sort -z | xargs -0r sha256sum";

fn run(mount: &Mount, at: &Path, script: &str) -> Output {
    let mut command = mount.command("timeout");
    command.args(["50", "bash", "-c", script]).current_dir(at);
    for (name, value) in [
        ("LC_ALL", "C"),
        ("HOME", "/nonexistent"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_AUTHOR_NAME", "a"),
        ("GIT_AUTHOR_EMAIL", "a@b"),
        ("GIT_COMMITTER_NAME", "a"),
        ("GIT_COMMITTER_EMAIL", "a@b"),
        ("GIT_AUTHOR_DATE", "2020-01-02T03:04:05Z"),
        ("GIT_COMMITTER_DATE", "2020-01-02T03:04:05Z"),
    ] {
        command.env(name, value);
    }
    finish(command.stdin(Stdio::null()))
}

/// Runs a script in the mount and in a bare directory, and compares all that can be seen.
fn same(script: &str) {
    for user in BOTH {
        let mount = options().user(user).mount();
        let bare = mount.point().with_file_name("bare");
        let made = run(&mount, Path::new("/"), &format!("mkdir {}", bare.display()));
        assert!(made.status.success());
        let copied = run(&mount, &bare, SETUP);
        assert!(copied.status.success(), "{}", text(&copied.stderr));
        // The same random bytes in both, by a program that is not what is tested.
        let copy = "tar c -C \"$0\" . | tar xp";
        let copy = copy.replace("\"$0\"", &format!("'{}'", bare.display()));
        let copied = run(&mount, mount.point(), &copy);
        assert!(copied.status.success(), "{}", text(&copied.stderr));

        let expected = run(&mount, &bare, script);
        let seen = run(&mount, mount.point(), script);
        let show = |output: &Output| {
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            format!("{}\n{out}{err}", output.status)
        };
        assert!(expected.status.success(), "bare: {}", show(&expected));
        assert_eq!(show(&seen), show(&expected), "{user:?}: {script}");
        let tree = |at: &Path| text(&run(&mount, at, TREE).stdout);
        let expected = tree(&bare);
        assert!(expected.lines().count() > 4, "{expected}");
        assert_eq!(tree(mount.point()), expected, "{user:?}: {script}");
        assert_eq!(mount.store("kept"), [""; 0]);
        let log = mount.log();
        assert!(!log.contains("WARN"), "{log}");
        mount.unmount();
        assert_eq!(tree(mount.backing()), expected, "{user:?}: {script}");
    }
}

#[test]
fn sort_into_its_own_input() {
    same("sort -n -o f f; sort -rn -o src/long src/long; head -3 f src/long");
}

#[test]
fn sed_in_place() {
    same(
        "sed -i s/1/one/ f; sed -i.bak -e 2d f; sed -i s/9/nine/g src/long; sed -ni 1,3p src/long",
    );
}

#[test]
fn perl_in_place() {
    same("perl -pi -e 's/1/one/' f; perl -i.orig -ne 'print unless $. == 2' f");
}

#[test]
fn cp_in_every_way() {
    same(
        "cp f g; cp f src/long; touch -d @1000000000 src/long; cp -a src copy; cp -rp src other; cp -l f hard; cp -s f soft; \
         cp --remove-destination g f; cp -u src/long copy/long; cp -b f g; \
         cp --sparse=always src/big sparse; cp --reflink=auto src/big clone; \
         stat -c '%n %Y %a' copy/long copy/deep other/long; cp -aT src copy",
    );
}

#[test]
fn mv_within_and_across_the_mount() {
    same(
        "out=$(mktemp -d); mv f g; mv src/long src/deep; mv src other; mv -n other/empty g; \
         mv other/big $out/; mv $out/big back; mv other $out/; mv $out/other src; \
         mv -f back src/big; mv -b g src/empty; rm -r $out; stat -c %Y src/deep/long",
    );
}

#[test]
fn dd_without_truncating() {
    same(
        "dd if=/dev/zero of=src/long bs=1 count=5 seek=100 conv=notrunc status=none; \
         dd if=f of=src/big bs=4k seek=3 conv=notrunc,fsync status=none; \
         dd if=/dev/zero of=new bs=1M count=5 status=none; \
         dd if=src/big of=src/empty bs=64k status=none; \
         dd if=f of=f bs=2 skip=1 count=1 conv=notrunc status=none; \
         dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000 status=none; \
         dd if=src/big of=direct bs=4096 count=10 oflag=direct status=none",
    );
}

#[test]
fn tee_cat_truncate_and_split() {
    same(
        "echo x | tee f src/long > /dev/null; echo y | tee -a f src/empty; cat f src/long >> src/run; \
         cat src/big >> src/big2; cat f f > g; truncate -s 100 g; truncate -s +50 g; truncate -s 0 f; \
         truncate -s 1M hole; split -b 700k src/big part.; split -l 1 g lines.; \
         cat part.* | cmp - src/big && echo whole",
    );
}

#[test]
fn install_and_patch() {
    same(
        "install -m 755 f bin; install -D -m 600 f a/b/c; install -p src/long .; install -b f bin; \
         cp f f.new; sed -i 2s/.*/changed/ f.new; diff -u --label f --label f f f.new > p || true; \
         patch -s f < p; patch -s -R f < p; patch -s -b f < p; cmp f f.new && echo same; \
         stat -c %Y long",
    );
}

#[test]
fn tar_in_and_out() {
    same(
        "tar cf all.tar src f; mkdir x; tar xf all.tar -C x; tar xpf all.tar -C x --overwrite; \
         tar czf all.tgz src; tar xzf all.tgz -C x --unlink-first; tar rf all.tar f; \
         tar tf all.tar | sort; tar df all.tar && echo no difference; rm all.tar all.tgz; \
         stat -c '%n %Y' x/src/long x/src/deep",
    );
}

#[test]
fn rsync_in_out_and_again() {
    same(
        "out=$(mktemp -d); rsync -a src/ $out/; rsync -a $out/ copy/; \
         rsync -ai src/ $out/; rsync -ai $out/ copy/; rsync -aic src/ copy/; \
         echo changed >> src/long; rsync -a src/ copy/; rsync -a --inplace src/ copy2/; \
         echo again >> src/long; rsync -a --inplace --no-whole-file src/ copy2/; \
         rsync -a --delete --delay-updates src/ copy/; rsync -aH --append-verify src/ copy2/; \
         diff -r src copy; diff -r src copy2; rsync -ai --delete src/ copy2/; rm -r $out",
    );
}

#[test]
fn git_in_the_mount() {
    same(
        "git init -q -b main .; git add .; git commit -qm one; sort -n -o f f; git commit -qam two; \
         git checkout -qb side HEAD~1; echo side > side; git add side; git commit -qm side; \
         git checkout -q main; git merge -q --no-edit side; git gc -q --prune=now; \
         git fsck --full --strict 2>&1 | grep -v ^notice || true; \
         git status --porcelain; git log --format=%s; git stash list; echo x >> f; git stash -q; \
         git status --porcelain; git stash pop -q; git status --porcelain; git checkout -q f; \
         git clone -q . clone; git -C clone fsck 2>&1 | grep -v ^notice || true; git -C clone log --oneline | wc -l; \
         git worktree add -q tree side; cat tree/side; git worktree remove tree; \
         rm -rf clone; git count-objects -v | grep -c garbage; git tag -a t -m t; git repack -qad; \
         git rev-list --objects --all | wc -l",
    );
}

#[test]
fn vim_saves() {
    same(
        "vim -u NONE -es -c '%s/1/one/' -c wq f; \
         vim -u NONE -es -c 'set backup backupcopy=yes' -c '$d' -c wq src/long; \
         vim -u NONE -es -c 'set backupcopy=no writebackup' -c 1d -c wq src/run; \
         vim -u NONE -es -c 'normal ihello' -c wq new; ls -A . src",
    );
}

#[test]
fn python_shutil_zipfile_and_friends() {
    same(
        "python3 - <<'EOF'\n\
         import shutil, zipfile, tarfile, json, pathlib, os, fileinput, pickle, shelve, dbm.dumb\n\
         shutil.copytree('src', 'copy', symlinks=True)\nshutil.copy2('f', 'g')\n\
         shutil.move('copy/long', 'moved')\nshutil.copyfile('src/big', 'g')\n\
         with zipfile.ZipFile('z.zip', 'w', zipfile.ZIP_DEFLATED) as z:\n    \
             z.write('src/long')\n    z.writestr('x', 'y')\n\
         with zipfile.ZipFile('z.zip', 'a') as z:\n    z.writestr('more', 'z' * 10000)\n\
         with zipfile.ZipFile('z.zip') as z:\n    \
             assert z.testzip() is None and z.read('more') == b'z' * 10000\n    \
             z.extractall('unzipped')\n\
         os.remove('z.zip')\n\
         with tarfile.open('t.tar', 'w') as t:\n    t.add('src')\n\
         with tarfile.open('t.tar', 'a') as t:\n    t.add('f')\n\
         assert 'f' in tarfile.open('t.tar').getnames()\nos.remove('t.tar')\n\
         p = pathlib.Path('doc.json')\np.write_text(json.dumps({'a': 1}))\n\
         p.write_text(json.dumps(json.loads(p.read_text()) | {'b': 2}))\n\
         for line in fileinput.input('f', inplace=True):\n    print(line.strip() + '!')\n\
         with open('f', 'r+') as f:\n    f.seek(0, 2)\n    f.write('end')\n    f.seek(0)\n    \
             print(f.read())\n    f.truncate(4)\n\
         with dbm.dumb.open('dumb', 'c') as d:\n    d['k'] = 'v' * 100\n\
         with dbm.dumb.open('dumb') as d:\n    assert d['k'] == b'v' * 100\n\
         EOF",
    );
}

#[test]
fn sqlite_in_one_process() {
    same(
        "python3 - <<'EOF'\n\
         import sqlite3\n\
         for mode in ['delete', 'truncate', 'persist', 'memory', 'off']:\n    \
             c = sqlite3.connect(f'{mode}.db')\n    \
             c.execute(f'pragma journal_mode={mode}')\n    \
             c.execute('create table t (a integer primary key, b text)')\n    \
             for n in range(20):\n        \
                 with c:\n            c.execute('insert into t (b) values (?)', ('x' * n,))\n    \
             print(mode, c.execute('select count(*), sum(length(b)) from t').fetchone())\n    \
             c.close()\n    \
             c = sqlite3.connect(f'{mode}.db')\n    \
             c.execute('delete from t where a > 10')\n    c.commit()\n    c.execute('vacuum')\n    \
             print(c.execute('pragma integrity_check').fetchone())\n    c.close()\n\
         EOF\n\
         sqlite3 cli.db 'create table t(a); insert into t values(1),(2); select sum(a) from t'; \
         sqlite3 cli.db .dump",
    );
}

#[test]
fn find_delete_and_rm() {
    same(
        "cp -a src a; cp -a src b; cp -a src c; find a -delete; rm -rf b; find c -type f -delete; \
         find c -type d -empty -delete; ls -R; find src -name long -exec rm {} +; \
         for n in $(seq 300); do echo $n > src/n$n; done; find src -name 'n*1' -delete; \
         find src -name 'n*' | wc -l; rm src/n*; ls src",
    );
}

#[test]
fn a_c_program_is_built_and_run() {
    same(
        "printf '#include <stdio.h>\\nint main(void){puts(\"hello\");return 0;}\\n' > a.c; \
         cc -c a.c -o a.o; cc -o a a.o; ./a; ar rcs liba.a a.o; ar t liba.a; ranlib liba.a; \
         cc -o a a.o; ./a; strip a; ./a; objcopy a b; ./b; gzip -k a.c; gunzip -c a.c.gz | cmp - a.c; \
         rm -f a a.o liba.a b a.c.gz",
    );
}

#[test]
fn shells_and_small_tools() {
    same(
        "echo a > x; echo b >> x; { echo c; (echo d); cat f; } >> x; cat x > y; exec 3<> x; \
         read -r line <&3; echo \"$line\"; echo z >&3; exec 3>&-; cat x; \
         cat <<EOT > here\n1\n2\nEOT\n\
         comm -12 <(sort f) <(sort src/long) > common; wc -l common; \
         shuf -i 1-10 | sort -n > sorted; uniq -c sorted counted; paste f f > pasted; \
         cut -f1 pasted | cmp - f; head -c 10 src/big > ten; tail -n +2 f > tail; mv tail f; \
         csplit -s f 2 || true; cksum src/long > sums; cksum src/long | cmp - sums; \
         awk '{print $1*2}' f > doubled; tr a-z A-Z < x > upper; set -C; \
         if echo no > x; then echo overwritten; fi 2>/dev/null; echo yes >| x; cat x",
    );
}

#[test]
fn a_thousand_small_files() {
    let script = "for n in $(seq 1000); do echo $n > n$n; done; cat n* | sort -n | tail -1; \
         ls | wc -l; cat n1 n500 n1000; tar c n* | tar t | wc -l";
    let mount = options().mount();
    assert_eq!(mount.bash(script), "1000\n1000\n1\n500\n1000\n1000\n");
    assert_eq!(
        fs::read_dir(mount.backing()).expect("BACKING").count(),
        1001
    );
}
