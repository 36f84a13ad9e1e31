use super::*;
use std::os::unix::ffi::OsStringExt as _;

fn parse_list(list: &str) -> Result<MountOptions, Failure> {
    MountOptions::parse(&[OsString::from(list)])
}

fn parsed(list: &str) -> MountOptions {
    parse_list(list).unwrap()
}

#[track_caller]
fn refused(list: &str, words: &str) {
    let failure = parse_list(list).unwrap_err();
    assert_eq!(failure.exit.code(), 2);
    assert!(failure.message.contains(words), "{}", failure.message);
}

#[test]
fn nothing_is_the_default() {
    assert_eq!(MountOptions::parse(&[]).unwrap(), MountOptions::default());
    assert_eq!(parsed(""), MountOptions::default());
    assert_eq!(parsed(",,rw,default_permissions,"), MountOptions::default());
}

#[test]
fn the_usual_options_are_known() {
    let options = parsed("ro,allow_other,auto_unmount,nosuid,nodev,noexec,noatime,sync,dirsync");
    assert!(options.read_only && options.allow_other && options.auto_unmount);
    assert_eq!(
        options.kernel,
        ["nosuid", "nodev", "noexec", "noatime", "sync", "dirsync"]
    );
    assert!(parsed("allow_root").allow_root);
    assert!(parsed("foreground").foreground);
}

#[test]
fn the_last_of_contradicting_options_wins() {
    assert!(!parsed("ro,rw").read_only);
    assert_eq!(
        parsed("nosuid,exec,suid,noexec,dirsync,dirsync").kernel,
        ["suid", "noexec", "dirsync"]
    );
    let lists = ["ro,lock_timeout=1".into(), "rw,lock_timeout=2".into()];
    let options = MountOptions::parse(&lists).unwrap();
    assert!(!options.read_only);
    assert_eq!(options.lock_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn words_for_mount_and_systemd_are_ignored() {
    let list =
        "defaults,noauto,nofail,_netdev,user,users,x-systemd.automount,x-gvfs-name=a b,comment=c";
    assert_eq!(parsed(list), MountOptions::default());
}

#[test]
fn the_long_options_have_the_same_names_here() {
    let options = parsed(
        "lock_timeout=90s,readers=snapshot,durability=rename,unmount_timeout=0,log_file=/a b",
    );
    assert_eq!(options.lock_timeout, Some(Duration::from_secs(90)));
    assert_eq!(options.readers, Some(Readers::Snapshot));
    assert_eq!(options.durability, Some(Durability::Rename));
    assert_eq!(options.unmount_timeout, Some(Duration::ZERO));
    assert_eq!(options.log_file.as_deref(), Some("/a b".as_ref()));
    let options = parsed("lock-timeout=5,unmount-timeout=6,log-file=x,durability=none");
    assert_eq!(options.lock_timeout, Some(Duration::from_secs(5)));
    assert_eq!(options.unmount_timeout, Some(Duration::from_secs(6)));
    assert_eq!(options.log_file.as_deref(), Some("x".as_ref()));
    assert_eq!(options.durability, Some(Durability::None));
}

#[test]
fn a_bad_value_is_named_with_what_was_expected() {
    refused(
        "lock_timeout=soon",
        "lock_timeout=soon: expected a time such as 10s",
    );
    refused("lock_timeout=0", "longer than 0");
    refused(
        "readers=maybe",
        "readers=maybe: expected one of: wait, snapshot",
    );
    refused("durability=FULL", "expected one of: full, rename, none");
    refused("lock_timeout", "lock_timeout needs a value");
    refused("log-file", "log-file needs a value");
    refused("log_file=", "needs a path");
    refused("fsname", "fsname needs a value");
}

#[test]
fn an_unknown_option_is_named() {
    refused("ro,bogus", "unknown mount option: bogus;");
    refused("bogus=1", "unknown mount option: bogus;");
    refused("ro=1", "unknown mount option: ro;");
    refused("foreground=yes", "unknown mount option: foreground;");
    refused("=x", "unknown mount option: ;");
}

#[test]
fn options_that_cannot_work_together_are_refused() {
    refused("allow_other,allow_root", "exclude each other");
    refused("auto_unmount", "only with allow_other or allow_root");
    refused("subtype=other", "subtype=other cannot be had");
    assert_eq!(parsed("subtype=latchfs"), MountOptions::default());
}

#[test]
fn a_backslash_keeps_a_comma_in_a_value() {
    assert_eq!(
        parsed(r"fsname=/a\,b,ro").source.as_deref(),
        Some("/a,b".as_ref())
    );
    assert_eq!(
        parsed(r"fsname=/a\\,ro").source.as_deref(),
        Some(r"/a\".as_ref())
    );
    assert_eq!(
        parsed(r"fsname=/end\").source.as_deref(),
        Some(r"/end\".as_ref())
    );
    assert_eq!(parsed("fsname=a=b").source.as_deref(), Some("a=b".as_ref()));
}

#[test]
fn what_escape_writes_split_reads() {
    for option in ["plain", "a,b", r"back\slash", r"\,", r"end\"] {
        assert_eq!(split(escape(option).as_bytes()), [option.as_bytes()]);
    }
}

#[test]
fn a_path_need_not_be_utf8() {
    let list = OsString::from_vec(b"log_file=/\xff".to_vec());
    let options = MountOptions::parse(&[list]).unwrap();
    assert_eq!(options.log_file.unwrap().as_os_str().as_bytes(), b"/\xff");
}
