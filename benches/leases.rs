//! What a lease costs: uncontended in a crowd of leased files, and handed from writer to writer.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use latchfs::leases::{FileId, Kind, LeaseTable, OwnerId, Wanted};
use std::hint::black_box;
use std::time::Duration;

fn wanted(file: u64, owner: u64) -> Wanted {
    Wanted {
        file: FileId(file),
        owner: OwnerId(owner),
        kind: Kind::Writer,
        deadline: Duration::from_secs(owner),
        nonblocking: false,
    }
}

/// One acquire and one release of a file that nobody else wants, with a million others leased.
/// The files are spread out, so that the table is hit where it is not cached.
fn uncontended(c: &mut Criterion) {
    const FILES: u64 = 1_000_000;
    let mut table = LeaseTable::new();
    for file in 0..FILES {
        let _ = table.acquire(wanted(file, file));
    }
    let mut file = FILES;
    c.bench_function("leases/uncontended, 1,000,000 files leased", |b| {
        b.iter(|| {
            file = FILES + (file * 7919 + 1) % FILES;
            let _ = black_box(table.acquire(wanted(black_box(file), 1)));
            black_box(table.release(FileId(file)))
        })
    });
}

/// One release that hands the lease to the first of a thousand writers, and the return of the
/// one who released to the end of the queue, so that its length stays.
fn hand_over(c: &mut Criterion) {
    const WRITERS: u64 = 1_000;
    c.bench_function("leases/hand-over, 1,000 writers queued", |b| {
        let mut table = LeaseTable::new();
        for owner in 0..=WRITERS {
            let _ = table.acquire(wanted(1, owner));
        }
        let mut holder = 0;
        b.iter(|| {
            black_box(table.release(FileId(1)));
            let _ = black_box(table.acquire(wanted(1, holder)));
            holder = (holder + 1) % (WRITERS + 1);
        })
    });
}

/// A thousand writers queue and all give up, the last to come first.
fn give_up(c: &mut Criterion) {
    const WRITERS: u64 = 1_000;
    c.bench_function("leases/1,000 writers queue and give up", |b| {
        b.iter_batched_ref(
            || {
                let mut table = LeaseTable::new();
                let _ = table.acquire(wanted(1, u64::MAX));
                table
            },
            |table| {
                for owner in 0..WRITERS {
                    let _ = table.acquire(wanted(1, WRITERS - owner));
                }
                black_box(table.expire(Duration::MAX))
            },
            BatchSize::SmallInput,
        )
    });
}

criterion_group!(benches, uncontended, hand_over, give_up);
criterion_main!(benches);
