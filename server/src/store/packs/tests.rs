//! What is told to the disk and when; who waits for whom.
//!
//! In: a disk that is watched, or held up. Out: what it was told. Not here: failures ([`super::salvage`],
//! `store/crash`).

use headstart_loadtest::corpus::Rng;

use super::*;
use crate::store::disk::{Op, Witness};

/// Ends of what was given to the disk, and of what was synced.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<(&'static str, u64, u64)>>);

impl Witness for Seen {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        match op {
            Op::Write(_, at, bytes) => seen.push(("write", at, at + bytes.len() as u64)),
            Op::StartWriting(path, at, len) => {
                assert!(path.ends_with("00000001.pack"));
                seen.push(("give", at, at + len));
                // It is a hint: nobody may mind.
                return Err(io::Error::other("a test's refusal"));
            }
            Op::Sync(_) => seen.push(("sync", 0, 0)),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn the_disk_is_given_what_was_written_once_and_a_commit_syncs_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Seen::default());
    let disk = Disk::with(seen.clone());
    let index = Index::fresh(dir.path()).unwrap().unwrap();
    let pack = Pack::create(&disk, dir.path(), PackId(1)).unwrap();
    let packs = Packs::new(disk, dir.path(), 1 << 30, pack, PACK_HEADER_LEN, BTreeMap::new());
    let mut rng = Rng::new(5);
    let mut add = |count: usize| {
        for _ in 0..count {
            let frame = rng.bytes(512 << 10);
            packs
                .append_chunk(&index, &ChunkDigest::of(&frame), 512 << 10, &frame)
                .unwrap();
        }
    };
    seen.0.lock().unwrap().clear();
    add(20);
    packs.commit(&index).unwrap();
    add(20);
    let (mut written, mut given, mut gives, mut syncs) = (PACK_HEADER_LEN, PACK_HEADER_LEN, 0, 0);
    for (what, from, to) in seen.0.lock().unwrap().drain(..) {
        match what {
            "write" => written = to,
            "sync" => (given, syncs) = (written, syncs + 1),
            _ => {
                assert_eq!(from, given, "nothing twice, nothing left out");
                assert!(to <= written && to - from >= AHEAD_BYTES);
                (given, gives) = (to, gives + 1);
            }
        }
    }
    assert_eq!((gives, syncs), (4, 1));
}

/// Holds up the sync of a pack that is being sealed.
#[derive(Debug)]
struct Slow {
    armed: std::sync::atomic::AtomicBool,
    syncs: Mutex<std::sync::mpsc::Sender<()>>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Witness for Slow {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        if matches!(op, Op::Sync(_)) && self.armed.swap(false, Ordering::SeqCst) {
            self.syncs.lock().unwrap().send(()).unwrap();
            let _ = self.go_on.lock().unwrap().recv();
        }
        Ok(())
    }
}

#[test]
fn readers_pass_while_a_pack_is_sealed() {
    const WAIT: std::time::Duration = std::time::Duration::from_secs(60);
    let dir = tempfile::tempdir().unwrap();
    let (syncs, is_syncing) = std::sync::mpsc::channel();
    let (let_on, go_on) = std::sync::mpsc::channel();
    let slow = Arc::new(Slow {
        armed: false.into(),
        syncs: Mutex::new(syncs),
        go_on: Mutex::new(go_on),
    });
    let disk = Disk::with(slow.clone());
    let index = Index::fresh(dir.path()).unwrap().unwrap();
    let pack = Pack::create(&disk, dir.path(), PackId(1)).unwrap();
    let packs = Packs::new(disk, dir.path(), 64 << 10, pack, PACK_HEADER_LEN, BTreeMap::new());
    let frames: Vec<_> = (0..3u8).map(|n| vec![n; 30 << 10]).collect();
    let put = |frame: &Vec<u8>| {
        packs
            .append_chunk(&index, &ChunkDigest::of(frame), 30 << 10, frame)
            .unwrap()
    };
    put(&frames[0]);
    packs.commit(&index).unwrap();
    put(&frames[1]);
    slow.armed.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let rolls = scope.spawn(|| put(&frames[2]));
        is_syncing.recv_timeout(WAIT).unwrap();
        // One that is in the index, and one that is not.
        let (read, reads) = std::sync::mpsc::channel();
        let (packs, index, frames) = (&packs, &index, &frames);
        scope.spawn(move || {
            for frame in &frames[..2] {
                let digest = ChunkDigest::of(frame);
                let at = packs.chunk(index, &digest).unwrap().unwrap();
                let payload = packs.read(at, RecordKind::Chunk, digest.as_bytes()).unwrap();
                read.send(payload.is_some_and(|payload| payload == *frame)).unwrap();
            }
        });
        let whole = [reads.recv_timeout(WAIT), reads.recv_timeout(WAIT)];
        drop(let_on);
        assert_eq!(whole, [Ok(true), Ok(true)]);
        let (at, new) = rolls.join().unwrap();
        assert!(new && at.pack == PackId(2));
    });
}
