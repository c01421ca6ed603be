//! What processes may rely on when they read, in the manner of pjdfstest: in a layer's own directory, and in an overlay on it.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_shim::layers::PresentationChoice;

use crate::overlay::Overlay;
use crate::support::{Body, FakeServer, Item, LayerBuilder, Node, What, noise};

const USER: u32 = 1000;
const GROUP: u32 = 2000;
/// More than a block of directory entries, and than the kernel asks for at once.
const MANY: usize = 3_000;
/// Above what 32 bits count, with one piece beyond.
const HUGE: u64 = 5 << 30;
const FAR: u64 = (4 << 30) + (300 << 20);

fn layer() -> LayerBuilder {
    let huge = Body {
        size: HUGE,
        pieces: vec![(FAR, noise(20_000, 1))],
    };
    let mut layer = LayerBuilder::new()
        .add("open", Item::dir().mode(0o755))
        .add("open/mine", Item::file("mine").mode(0o600).owner(USER, 0))
        .add("open/theirs", Item::file("theirs").mode(0o600))
        .add("open/group", Item::file("group").mode(0o640).owner(0, GROUP))
        .add("open/all", Item::file(noise(300_001, 2)).mode(0o644))
        .add("shut", Item::dir().mode(0o700))
        .add("shut/f", Item::file("f"))
        .add("through", Item::dir().mode(0o711))
        .add("through/f", Item::file("f").mode(0o644))
        .add("link", Item::new(What::Symlink(b"open/all".to_vec())).mode(0o777))
        .add("loop", Item::new(What::Symlink(b"loop".to_vec())).mode(0o777))
        .add("pipe", Item::new(What::Fifo).mode(0o644))
        .add("noted", Item::file("n").xattr("user.a", b"12345").xattr("user.b", b""))
        .add("huge", Item::new(What::File(huge)))
        .add("many", Item::dir().mode(0o755));
    for at in 0..MANY {
        layer = layer.add(many(at), Item::file(""));
    }
    layer
}

fn many(at: usize) -> String {
    format!("many/{at}-with-a-name-that-takes-some-room-in-a-block")
}

/// A node that shows a layer, and where unprivileged processes may look for it. Fields are dropped in order.
struct Shown {
    overlay: Overlay,
    direct: PathBuf,
    _node: Node,
    _dirs: [tempfile::TempDir; 2],
    _server: FakeServer,
}

impl Shown {
    fn new(layer: LayerBuilder) -> Self {
        let server = FakeServer::start();
        let layer = layer.build(64 << 10);
        server.serve(&layer);
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in &dirs {
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let node = Node::open(dirs[0].path(), &[&server]);
        let direct = node.show(&layer);
        let overlay = Overlay::new(dirs[1].path(), std::slice::from_ref(&direct));
        Self {
            overlay,
            direct,
            _node: node,
            _dirs: dirs,
            _server: server,
        }
    }

    /// Under both, told by name.
    fn both(&self, look: impl Fn(&str, &Path)) {
        look("the layer", &self.direct);
        look("an overlay", &self.overlay.at(""));
    }
}

fn code<T>(outcome: io::Result<T>) -> i32 {
    outcome.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn call(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn access(path: &Path, mode: libc::c_int) -> i32 {
    let path = c(path);
    // SAFETY: a NUL-ended path that lives over the call.
    code(call(unsafe { libc::access(path.as_ptr(), mode) }))
}

/// On a thread whose credentials alone are those: the C library would change all threads'.
fn as_user<T: Send>(groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the list lives over the call; the others take numbers.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, USER, USER, USER), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, USER, USER, USER), 0);
            }
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn whoever_is_not_root_may_read_what_modes_and_owners_say() {
    let shown = Shown::new(layer());
    shown.both(|place, dir| {
        let at = |name: &str| dir.join(name);
        as_user(&[GROUP], || {
            let open = |name: &str| code(File::open(at(name)));
            assert_eq!(open("open/mine"), 0, "{place}");
            assert_eq!(open("open/group"), 0, "{place}");
            assert_eq!(open("open/theirs"), libc::EACCES, "{place}");
            assert_eq!(open("shut/f"), libc::EACCES, "{place}");
            assert_eq!(code(fs::metadata(at("shut/absent"))), libc::EACCES, "{place}");
            assert_eq!(open("through/f"), 0, "{place}");
            assert_eq!(code(fs::metadata(at("through/absent"))), libc::ENOENT, "{place}");
            assert_eq!(code(fs::read_dir(at("through"))), libc::EACCES, "{place}");
            assert_eq!(code(fs::read_dir(at("shut"))), libc::EACCES, "{place}");
            assert_eq!(access(&at("open/all"), libc::R_OK), 0, "{place}");
            assert_eq!(access(&at("open/all"), libc::X_OK), libc::EACCES, "{place}");
            assert_eq!(
                access(&at("open/group"), libc::W_OK | libc::R_OK),
                if place == "the layer" {
                    libc::EROFS
                } else {
                    libc::EACCES
                },
                "{place}"
            );
        });
        as_user(&[], || {
            assert_eq!(
                code(File::open(at("open/group"))),
                libc::EACCES,
                "{place}: not of the group"
            );
        });
        assert_eq!(
            access(&at("open/all"), libc::X_OK),
            libc::EACCES,
            "{place}: nobody may execute it"
        );
    });
}

#[test]
fn names_that_cannot_be_had_say_why() {
    let shown = Shown::new(layer());
    shown.both(|place, dir| {
        let at = |name: &str| dir.join(name);
        let open = |name: &str, flags: i32| code(OpenOptions::new().read(true).custom_flags(flags).open(at(name)));
        assert_eq!(open("absent", 0), libc::ENOENT, "{place}");
        assert_eq!(open("open/all/below", 0), libc::ENOTDIR, "{place}");
        assert_eq!(open(&"l".repeat(256), 0), libc::ENAMETOOLONG, "{place}");
        assert_eq!(open("open/all", libc::O_DIRECTORY), libc::ENOTDIR, "{place}");
        assert_eq!(open("link", libc::O_NOFOLLOW), libc::ELOOP, "{place}");
        assert_eq!(open("loop", 0), libc::ELOOP, "{place}");
        assert_eq!(code(fs::read_link(at("open/all"))), libc::EINVAL, "{place}");
        assert_eq!(code(fs::read(at("open"))), libc::EISDIR, "{place}");
        assert_eq!(fs::read(at("link")).unwrap(), noise(300_001, 2), "{place}");
        assert_eq!(fs::symlink_metadata(at("link")).unwrap().len(), 8, "{place}");
        // A pipe is the kernel's: a reader without a writer, who does not wait.
        assert_eq!(open("pipe", libc::O_NONBLOCK), 0, "{place}");
    });
}

/// `statfs` apart, everything that would change something is refused alike.
#[test]
fn a_layer_itself_refuses_every_change() {
    let shown = Shown::new(layer());
    let at = |name: &str| c(&shown.direct.join(name));
    let (file, new, dir) = (at("open/all"), at("open/new"), at("open"));
    let (f, n, d) = (file.as_ptr(), new.as_ptr(), dir.as_ptr());
    let (name, value) = (c"user.k", c"v");
    // SAFETY: every path and name is NUL-ended and lives to the end of the function.
    let outcomes = unsafe {
        [
            ("open for writing", libc::open(f, libc::O_WRONLY)),
            ("open for both", libc::open(f, libc::O_RDWR)),
            ("truncating open", libc::open(f, libc::O_RDONLY | libc::O_TRUNC)),
            ("create", libc::open(n, libc::O_CREAT | libc::O_WRONLY, 0o644)),
            ("truncate", libc::truncate(f, 0)),
            ("unlink", libc::unlink(f)),
            ("rmdir", libc::rmdir(d)),
            ("mkdir", libc::mkdir(n, 0o755)),
            ("mknod", libc::mknod(n, libc::S_IFIFO | 0o644, 0)),
            ("symlink", libc::symlink(f, n)),
            ("link", libc::link(f, n)),
            ("rename", libc::rename(f, n)),
            ("chmod", libc::chmod(f, 0o777)),
            ("chown", libc::lchown(f, 1, 1)),
            ("utimes", libc::utimensat(libc::AT_FDCWD, f, std::ptr::null(), 0)),
            (
                "setxattr",
                libc::setxattr(f, name.as_ptr(), value.as_ptr().cast(), 1, 0),
            ),
            ("removexattr", libc::removexattr(f, name.as_ptr())),
            ("access", libc::access(f, libc::W_OK)),
        ]
        .map(|(what, result)| (what, code(call(result))))
    };
    for (what, code) in outcomes {
        assert_eq!(code, libc::EROFS, "{what}");
    }
}

#[test]
fn attributes_say_how_long_they_are_and_what_is_not_there() {
    let shown = Shown::new(layer());
    shown.both(|place, dir| {
        let path = c(&dir.join("noted"));
        let get = |name: &CStr, out: &mut [u8]| {
            // SAFETY: the buffer is as long as is said.
            let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), out.as_mut_ptr().cast(), out.len()) };
            usize::try_from(len).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(0))
        };
        assert_eq!(get(c"user.a", &mut []), Ok(5), "{place}");
        assert_eq!(get(c"user.a", &mut [0; 4]), Err(libc::ERANGE), "{place}");
        let mut value = [0; 9];
        assert_eq!(get(c"user.a", &mut value), Ok(5), "{place}");
        assert_eq!(&value[..5], b"12345", "{place}");
        assert_eq!(get(c"user.b", &mut value), Ok(0), "{place}");
        assert_eq!(get(c"user.c", &mut value), Err(libc::ENODATA), "{place}");
        let mut names = [0u8; 64];
        let list = |out: &mut [u8]| {
            // SAFETY: the buffer is as long as is said.
            let len = unsafe { libc::listxattr(path.as_ptr(), out.as_mut_ptr().cast(), out.len()) };
            usize::try_from(len).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(0))
        };
        assert_eq!(list(&mut []), Ok(14), "{place}");
        assert_eq!(list(&mut [0; 13]), Err(libc::ERANGE), "{place}");
        assert_eq!(list(&mut names), Ok(14), "{place}");
        let mut sorted: Vec<&[u8]> = names[..14].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, [b"user.a", b"user.b"], "{place}");
    });
}

/// A directory that is being listed.
struct Listing(*mut libc::DIR);

impl Listing {
    fn open(path: &Path) -> Self {
        let path = c(path);
        // SAFETY: a NUL-ended path that lives over the call.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null());
        Self(dir)
    }

    fn next(&mut self) -> Option<String> {
        // SAFETY: the stream is open; the record is read before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            (!entry.is_null()).then(|| CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap().to_owned())
        }
    }

    fn tell(&self) -> libc::c_long {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&mut self, to: libc::c_long) {
        // SAFETY: the stream is open, the position was told by it.
        unsafe { libc::seekdir(self.0, to) };
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn a_listing_has_each_name_once_and_goes_on_from_any_position_that_it_told() {
    let shown = Shown::new(layer());
    shown.both(|place, dir| {
        let mut listing = Listing::open(&dir.join("many"));
        let mut told = Vec::new();
        loop {
            let position = listing.tell();
            let Some(name) = listing.next() else { break };
            told.push((position, name));
        }
        let mut names: Vec<&str> = told.iter().map(|(_, n)| n.as_str()).collect();
        names.sort_unstable();
        let mut expected: Vec<String> = (0..MANY).map(|at| many(at)["many/".len()..].to_owned()).collect();
        expected.extend([".".to_owned(), "..".to_owned()]);
        expected.sort();
        assert!(names == expected, "{place}");
        for (at, (position, name)) in told.iter().enumerate().step_by(137).rev() {
            listing.seek(*position);
            assert_eq!(listing.next().as_ref(), Some(name), "{place}: {at}");
            assert_eq!(
                listing.next().as_ref(),
                told.get(at + 1).map(|(_, n)| n),
                "{place}: {at}"
            );
        }
        listing.seek(told[0].0);
        let again = std::iter::from_fn(|| listing.next()).count();
        assert_eq!(again, told.len(), "{place}");
    });
}

#[test]
fn every_way_of_reading_gives_the_same_bytes() {
    let shown = Shown::new(layer());
    let expected = noise(300_001, 2);
    shown.both(|place, dir| {
        let path = dir.join("open/all");
        let file = File::open(&path).unwrap();
        let mut part = [7; 10];
        assert_eq!(file.read_at(&mut part, 300_001).unwrap(), 0, "{place}");
        assert_eq!(file.read_at(&mut part, 299_998).unwrap(), 3, "{place}");
        assert_eq!(part[..3], expected[299_998..], "{place}");
        // SAFETY: the mapping is of the length asked for, and unmapped after its last use.
        unsafe {
            let len = expected.len();
            let fd = file.as_raw_fd();
            let map = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(map, libc::MAP_FAILED, "{place}");
            assert!(std::slice::from_raw_parts(map.cast::<u8>(), len) == expected, "{place}");
            let tail = std::slice::from_raw_parts(map.cast::<u8>().add(len), len.next_multiple_of(4096) - len);
            assert!(tail.iter().all(|b| *b == 0), "{place}: zeros behind the end");
            libc::munmap(map, len);
        }
        // sendfile or copy_file_range, as the kernel likes.
        let mut copy = tempfile::tempfile().unwrap();
        io::copy(&mut File::open(&path).unwrap(), &mut copy).unwrap();
        let mut copied = vec![0; expected.len()];
        copy.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == expected, "{place}");
        let (mut from, mut to) = io::pipe().unwrap();
        let piped = std::thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).unwrap();
            all
        });
        // SAFETY: both descriptors are open; no offset is passed.
        let moved = unsafe {
            libc::splice(
                file.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                5_000,
                0,
            )
        };
        assert_eq!(moved, 5_000, "{place}");
        to.flush().unwrap();
        drop(to);
        assert!(piped.join().unwrap() == expected[..5_000], "{place}");
    });
}

#[test]
fn a_file_may_be_longer_than_four_gibibytes() {
    let shown = Shown::new(layer());
    shown.both(|place, dir| {
        let path = dir.join("huge");
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.len(), HUGE, "{place}");
        let file = File::open(&path).unwrap();
        if crate::PRESENTATION == PresentationChoice::Fuse {
            assert!(stat.blocks() * 512 < 1 << 20, "{place}: holes take no room");
        } else {
            // EROFS has no field for how much of a file in chunks is there; who looks for data is told.
            // SAFETY: an open descriptor, and numbers.
            let data = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) };
            assert_eq!(data, FAR as i64, "{place}");
        }
        let mut bytes = vec![1; 30_000];
        file.read_exact_at(&mut bytes, FAR - 5_000).unwrap();
        let mut expected = vec![0; 30_000];
        expected[5_000..25_000].copy_from_slice(&noise(20_000, 1));
        assert!(bytes == expected, "{place}");
        for hole in [0, (4 << 30) - 2_048, HUGE - 30_000] {
            file.read_exact_at(&mut bytes, hole).unwrap();
            assert!(bytes.iter().all(|b| *b == 0), "{place}: {hole}");
        }
        assert_eq!(file.read_at(&mut bytes, HUGE).unwrap(), 0, "{place}");
    });
}

/// Effective capabilities and user of a process that is `cat` of the layer, run by somebody who has none.
fn status_by(program: &Path) -> (u64, u32) {
    let mut command = Command::new(program);
    command.arg("/proc/self/status");
    std::os::unix::process::CommandExt::uid(&mut command, USER);
    std::os::unix::process::CommandExt::gid(&mut command, USER);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    assert!(output.status.success(), "{}: {output:?}", program.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap().to_owned();
    let effective = u64::from_str_radix(field("CapEff:").trim(), 16).unwrap();
    // Real, effective, saved, filesystem.
    let user = field("Uid:").split_whitespace().nth(1).unwrap().parse().unwrap();
    (effective, user)
}

#[test]
fn what_is_run_from_a_layer_is_mapped_and_has_its_capabilities_and_its_owner() {
    const NET_RAW: u64 = 1 << 13;
    // VFS_CAP_REVISION_2 with the effective flag, CAP_NET_RAW permitted.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let cat = fs::read("/bin/cat").unwrap();
    let shown = Shown::new(
        LayerBuilder::new()
            .add("bin/cat", Item::file(cat.clone()).mode(0o755))
            .add(
                "bin/able",
                Item::file(cat.clone())
                    .mode(0o755)
                    .xattr("security.capability", &capability),
            )
            .add("bin/root", Item::file(cat).mode(0o4755)),
    );
    shown.both(|place, dir| {
        assert_eq!(status_by(&dir.join("bin/cat")), (0, USER), "{place}");
        assert_eq!(status_by(&dir.join("bin/able")), (NET_RAW, USER), "{place}");
        let (capabilities, user) = status_by(&dir.join("bin/root"));
        assert_eq!(user, 0, "{place}");
        assert_ne!(capabilities & NET_RAW, 0, "{place}");
    });
}

#[test]
fn a_container_may_stack_what_it_sees_once_more() {
    let shown = Shown::new(LayerBuilder::new().add("f", Item::file(noise(100_000, 3))));
    let inner = tempfile::tempdir().unwrap();
    let inner = Overlay::new(inner.path(), &[shown.overlay.at("")]);
    assert!(fs::read(inner.at("f")).unwrap() == noise(100_000, 3));
    fs::write(inner.at("f"), "copied up").unwrap();
    assert!(fs::read(shown.overlay.at("f")).unwrap() == noise(100_000, 3));
}
