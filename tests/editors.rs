//! Editors: the content is right, mode and owner are kept, and what lies about afterwards is what
//! lies about on a bare directory.

mod common;

use common::{Mount, User, finish, options, text};
use std::path::Path;
use std::process::Stdio;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// The files that are edited.
const SETUP: &str = "umask 022; mkdir -p home sub; seq 5 > f; chmod 640 f; seq 1000 > sub/long; \
     printf '#!/bin/sh\\necho ran\\n' > run; chmod 750 run; seq 5 > linked; ln linked link; \
     ln -s sub/long symlink; printf 'no newline' > short; seq 3 > readonly; chmod 444 readonly; \
     chmod 1777 .";

/// All there is: names, types, modes, owners, links, content. Undo and swap files have the path in
/// them.
const TREE: &str = "find . -mindepth 1 -path ./.latchfs -prune -o -path ./home -prune -o \
     -printf '%p %y %m %u %g %n %l\\n' | sort; \
     find . -path ./.latchfs -prune -o -path ./home -prune -o -type f ! -name '*.un~' -print0 | \
     sort -z | xargs -0r sha256sum";

/// Types into a program on a terminal of its own: pairs of what must be on the screen first, and
/// what is typed then. In Python.
const TYPIST: &str = r#"
import os, pty, select, sys, time
command, script = eval(sys.argv[1]), eval(sys.argv[2])
child, terminal = pty.fork()
if child == 0:
    os.environ['TERM'] = 'vt100'
    os.execvp(command[0], command)
end, shown = time.monotonic() + 40, b''
def read():
    global shown
    if not select.select([terminal], [], [], max(0, end - time.monotonic()))[0]:
        print('on the screen:', shown[-2000:])
        os.kill(child, 9)
        sys.exit('it did not come to ' + repr(awaited))
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b''
    shown += data
    return data
for awaited, typed in script:
    while awaited.encode() not in shown:
        if not read():
            sys.exit('it ended before ' + repr(awaited) + ' ' + repr(shown[-2000:]))
    shown = b''
    os.write(terminal, typed.encode())
awaited = 'its end'
while read():
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

fn run(mount: &Mount, at: &Path, script: &str) -> (bool, String) {
    let mut command = mount.command("timeout");
    command.args(["50", "bash", "-c", script]).current_dir(at);
    command.env("LC_ALL", "C").env("HOME", at.join("home"));
    command.env("TYPIST", TYPIST).env_remove("TMPDIR");
    let output = finish(command.stdin(Stdio::null()));
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), said)
}

/// Runs a script in the mount and in a bare directory, and compares all that is left.
fn same(script: &str) {
    for user in BOTH {
        let mount = options().user(user).mount();
        let bare = mount.point().with_file_name("bare");
        let made = run(&mount, Path::new("/"), &format!("mkdir {}", bare.display()));
        assert!(made.0, "{}", made.1);
        let tree = |at: &Path| run(&mount, at, TREE).1;
        for at in [bare.as_path(), mount.point()] {
            let (done, said) = run(&mount, at, SETUP);
            assert!(done, "{said}");
            let before = tree(at);
            let (done, said) = run(&mount, at, script);
            assert!(done, "{}: {said}", at.display());
            assert_ne!(tree(at), before, "nothing was edited: {said}");
        }
        assert_eq!(tree(mount.point()), tree(&bare), "{user:?}: {script}");
        assert_eq!(mount.store("kept"), [""; 0]);
        let log = mount.log();
        assert!(!log.contains("WARN"), "{log}");
        mount.unmount();
        assert_eq!(tree(mount.backing()), tree(&bare), "{user:?}: {script}");
    }
}

/// Vim without a terminal: its own defaults, and what the commands set.
fn vim(settings: &str, files: &[&str]) -> String {
    let save = |file: &&str| {
        format!("vim -u NONE -N -es {settings} -c '%s/1/one/e' -c 'normal Goadded' -c wq {file}; ")
    };
    files.iter().map(save).collect()
}

const FILES: [&str; 6] = ["f", "sub/long", "run", "linked", "symlink", "new"];

#[test]
fn vim_saves_in_every_way_it_has() {
    for copy in ["auto", "yes", "no"] {
        same(&vim(&format!("-c 'set backupcopy={copy}'"), &FILES));
    }
}

#[test]
fn vim_makes_backups_undo_files_and_swap_files() {
    same(&vim(
        "-c 'set backup backupcopy=no backupext=.bak undofile'",
        &FILES,
    ));
    same(&vim(
        "-c 'set backup backupcopy=yes patchmode=.orig'",
        &FILES,
    ));
    same("vim -u NONE -N -es -c 'set backupcopy=yes' -c '1s/1/one/' -c 'wq!' readonly");
}

#[test]
fn vim_on_a_terminal_with_its_default_settings() {
    let vim = |options: &str, settings: &str| {
        format!(
            "python3 -c \"$TYPIST\" \"['vim', '-u', {options}, 'f']\" \
             \"[('5', '{settings}:%s/1/one/\\r:w\\r'), ('written', 'Goend\\033:x\\r')]\" || exit 1; \
             test ! -e .f.swp"
        )
    };
    same(&vim("'DEFAULTS'", ""));
    same(&vim("'NONE', '-N'", ":set undofile backup\\r"));
}

#[test]
fn a_swap_file_of_a_vim_that_was_killed_recovers_what_was_typed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("seq 5 > f");
        let script = "python3 -c \"$TYPIST\" \"['vim', '-u', 'NONE', '-N', 'f']\" \
             \"[('5', 'Gotyped\\033:preserve\\r'), ('preserved', ':!kill -9 \\$PPID\\r')]\"; \
             test -s .f.swp || exit 1; \
             vim -u NONE -N -es -r f -c 'w recovered' -c 'qa!'; cat recovered";
        let (_, said) = run(&mount, mount.point(), script);
        assert!(said.ends_with("1\n2\n3\n4\n5\ntyped\n"), "{said}");
        assert_eq!(mount.read("f"), "1\n2\n3\n4\n5\n");
    }
}

/// Emacs in batch mode.
fn emacs(settings: &str, files: &[&str]) -> String {
    let save = |file: &&str| {
        format!(
            "emacs -Q --batch --eval \"(progn {settings} (find-file \\\"{file}\\\") \
             (goto-char (point-max)) (insert \\\"added\\\") (save-buffer) \
             (insert \\\"again\\\") (save-buffer))\" || exit 1; "
        )
    };
    files.iter().map(save).collect()
}

#[test]
fn emacs_saves_with_backups_by_renaming_and_by_copying() {
    same(&emacs("(setq make-backup-files t)", &FILES));
    same(&emacs(
        "(setq make-backup-files t backup-by-copying t)",
        &FILES,
    ));
    same(&emacs(
        "(setq make-backup-files nil file-precious-flag t)",
        &FILES,
    ));
    same(&emacs(
        "(setq version-control t kept-new-versions 2 delete-old-versions t)",
        &["f", "symlink"],
    ));
}

#[test]
fn emacs_sees_that_another_has_saved_the_file_and_only_then() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("seq 5 > f; mkdir home");
        let script = "emacs -Q --batch --eval '(progn (find-file \"f\") (insert \"x\") (save-buffer) \
             (message \"%s\" (verify-visited-file-modtime)) \
             (call-process \"sh\" nil nil nil \"-c\" \"sleep 0.01; echo another > f\") \
             (message \"%s\" (verify-visited-file-modtime)) (revert-buffer t t) \
             (message \"%s %s\" (verify-visited-file-modtime) (buffer-string)))'";
        let (done, said) = run(&mount, mount.point(), script);
        assert!(done && said.ends_with("t\nnil\nt another\n\n"), "{said}");
    }
}

#[test]
fn nano_saves() {
    let nano = |options: &str, file: &str| {
        format!(
            "python3 -c \"$TYPIST\" \"['nano', '-I', {options} '{file}']\" \
             \"[('{file}', 'typed\\r\\x0f'), ('Write', '\\r'), ('Wrote', '\\x18')]\" || exit 1; "
        )
    };
    same(&FILES.map(|file| nano("", file)).concat());
    same(
        &["f", "run", "symlink"]
            .map(|file| nano("'-B',", file))
            .concat(),
    );
}

#[test]
fn line_editors_and_editing_filters() {
    same(
        "printf '1s/1/one/\\n$a\\nadded\\n.\\nw\\nq\\n' | ed -s f; printf 'a\\nx\\n.\\nw new\\nq\\n' | ed -s; \
          printf '1d\\nw\\nq\\n' | ed -s linked; ex -s -c 1d -c wq run </dev/null",
    );
    same(
        "sed -i s/1/one/ f run linked symlink; sed -i.bak 1d sub/long; \
         sed -i --follow-symlinks 2d symlink; sed -i -c s/2/two/ f 2>/dev/null || sed -i s/2/two/ f; \
         sed -i '$a added' short",
    );
    same(
        "perl -pi -e 's/1/one/' f run linked; perl -i.bak -ne 'print unless $. == 2' sub/long; \
         perl -pi -e 's/n/N/' symlink short",
    );
}
