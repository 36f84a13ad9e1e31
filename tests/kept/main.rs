//! Versions that could not become the file are kept aside, within bounds, and can be had back.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod command;
mod reasons;

use common::Mount;
use std::fs;

/// The kept versions as they lie in the store, the oldest first: what the record says, the bytes.
fn kept(mount: &Mount) -> Vec<(serde_json::Value, Vec<u8>)> {
    let dir = mount.behind(".latchfs/kept");
    let names = mount.store("kept");
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".json"))
        .map(|id| {
            let path = dir.join(format!("{id}.json"));
            let time = path
                .metadata()
                .and_then(|m| m.modified())
                .expect("its time");
            let record = fs::read(&path).expect("the record");
            let mut record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
            record["id"] = id.into();
            let bytes = fs::read(dir.join(format!("{id}.data"))).expect("the bytes");
            (time, record, bytes)
        })
        .collect();
    assert_eq!(names.len(), 2 * found.len(), "{names:?}");
    found.sort_by_key(|(time, ..)| *time);
    found.into_iter().map(|(_, r, b)| (r, b)).collect()
}

/// The only one.
fn only(mount: &Mount) -> (serde_json::Value, Vec<u8>) {
    let mut all = kept(mount);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// Has a writer of `name`, who has written `content` (a Python expression), killed.
fn kill_writer(mount: &Mount, name: &str, content: &str) -> u32 {
    let mut writer = mount.spawn_python(&format!(
        "fd = os.open({name}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)\n\
         data = {content}\n\
         while data: data = data[os.write(fd, data):]\n\
         say('written')\nhear()"
    ));
    writer.expect("written");
    writer.signal("KILL");
    writer.wait();
    // Its end has been seen once the file can be written again.
    mount.python(&format!(
        "os.close(os.open({name}, os.O_WRONLY | os.O_CREAT))"
    ));
    writer.pid()
}
