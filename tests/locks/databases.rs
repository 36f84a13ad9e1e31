//! sqlite, which locks ranges of its files in both of its journal modes.

use crate::Command;
use crate::common::{Mount, as_each_user, text};
use std::path::Path;

const PROCESSES: usize = 4;
const ROUNDS: usize = 40;

/// Several sqlite3 shells write one database; returns how many rows there are, the check of the
/// database, and its journal mode.
fn work(mut command: Command, dir: &Path, mode: &str) -> String {
    let script = format!(
        "set -e
        sqlite3 x.db 'pragma journal_mode = {mode}; create table t (who, what); \
            create table n (value); insert into n values (0);' > /dev/null
        for who in $(seq {PROCESSES}); do
            (
                set -e
                for what in $(seq {ROUNDS}); do
                    echo \"begin immediate; update n set value = value + 1;\"
                    echo \"insert into t values ($who, $what); commit;\"
                done | sqlite3 -bail -cmd '.timeout 30000' x.db
                echo select count\\(*\\) from t | sqlite3 -bail -cmd '.timeout 30000' x.db > /dev/null
            ) &
            children=\"$children $!\"
        done
        for child in $children; do wait $child; done
        sqlite3 x.db 'select count(*), count(distinct who), (select value from n) from t; \
            pragma integrity_check; pragma journal_mode'"
    );
    let output = crate::common::finish(command.arg("-c").arg(script).current_dir(dir));
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn ends_as_on_a_bare_directory(mode: &str) {
    let all = PROCESSES * ROUNDS;
    let expected = format!("{all}|{PROCESSES}|{all}\nok\n{mode}\n");
    let bare = crate::bare();
    assert_eq!(work(Command::new("bash"), bare.path(), mode), expected);
    as_each_user(|mount: &Mount| {
        let said = work(mount.command("bash"), mount.point(), mode);
        assert_eq!(said, expected);
    });
}

#[test]
fn processes_that_write_one_sqlite_database_lose_nothing() {
    ends_as_on_a_bare_directory("delete");
}

#[test]
fn processes_that_write_one_sqlite_database_with_a_write_ahead_log_lose_nothing() {
    ends_as_on_a_bare_directory("wal");
}
