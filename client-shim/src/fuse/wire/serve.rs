//! The loop of a mount: read a request, answer it, and so on.
//!
//! In: a connection, shaken hands, or a predecessor's. Out: answers, until the filesystem is unmounted. Invariant: what a
//! predecessor read and did not answer is answered first; a request that makes the code panic gets EIO, and the loop goes on.
//! Not here: the answers (`fuse/kernel.rs`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::abi::REQUEST_LEN_MAX;
use super::device::Device;
use super::init::Offer;
use super::reply::{Errno, Line, Reply};
use super::request::{Request, What};
use super::vigil::Vigil;
use crate::fuse::kernel::KernelFs;

/// Answers the kernel's first request, after which the mount can be used. Returns the kernel's abilities.
pub fn shake_hands(device: &Device) -> io::Result<u64> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut buffer = [0; REQUEST_LEN_MAX];
    let len = device
        .receive(&mut buffer)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "unmounted before it was used"))?;
    let request = Request::parse(&buffer[..len]).ok_or_else(|| invalid("the kernel's first request is cut"))?;
    let What::Init(body) = request.what else {
        return Err(invalid("the kernel's first request is no handshake"));
    };
    let offer = Offer::parse(body).ok_or_else(|| invalid("the kernel's handshake is cut"))?;
    if offer.major != super::abi::MAJOR {
        device.answer(request.header.unique, -libc::EPROTO, &[])?;
        return Err(invalid("the kernel speaks another protocol"));
    }
    device.answer(request.header.unique, 0, &[&offer.answer()])?;
    Ok(offer.flags)
}

/// How a successor gets at what its predecessor left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// A new mount has none.
    None,
    /// The table has them.
    Table,
    /// The kernel sends them again; if it does not, the table has them.
    Resend,
}

/// Serves until the filesystem is gone. Blocks: this is the session's thread.
pub fn serve(line: &Arc<Line>, fs: &KernelFs, leftovers: Leftovers) -> io::Result<()> {
    take_over(line, fs, leftovers);
    let mut vigil = Vigil::of_this_machine();
    loop {
        vigil.until(|| line.device.has_request());
        // SAFETY: this thread alone receives, and nothing of the last request is referred to any more.
        let buffer = unsafe { line.table.receiving() };
        let Some(len) = line.device.receive(buffer)? else {
            return Ok(());
        };
        vigil.came();
        if handle(line, fs, &buffer[..len], None) {
            return Ok(());
        }
    }
}

fn take_over(line: &Arc<Line>, fs: &KernelFs, leftovers: Leftovers) {
    let resent = leftovers == Leftovers::Resend
        && line
            .device
            .resend()
            .inspect_err(|error| tracing::warn!(%error, "kernel-refused-to-resend"))
            .is_ok();
    if leftovers == Leftovers::None || resent {
        // They come with new names, and the kernel has forgotten the old ones.
        line.table.clear();
        return;
    }
    let waiting = line.table.waiting();
    let received = line.table.received();
    let count = waiting.len() + usize::from(received.is_some());
    tracing::info!(requests = count, "requests-of-predecessor-answered");
    // First, as it stands where the next one will.
    if let Some(request) = received {
        handle(line, fs, &request, None);
        line.table.clear_received();
    }
    for (slot, request) in waiting {
        handle(line, fs, &request, Some(slot));
    }
}

/// Whether the filesystem has ended.
fn handle(line: &Arc<Line>, fs: &KernelFs, bytes: &[u8], slot: Option<super::in_flight::Slot>) -> bool {
    let Some(request) = Request::parse(bytes) else {
        tracing::warn!(len = bytes.len(), "request-not-understood");
        // Its name, if it got that far.
        match bytes.get(8..16).and_then(|b| b.try_into().ok()) {
            Some(unique) => Reply::new(line, u64::from_ne_bytes(unique), slot).error(Errno(libc::EINVAL)),
            None => {
                if let Some(slot) = slot {
                    line.table.release(slot);
                }
            }
        }
        return false;
    };
    if request.what == What::Forget {
        return false;
    }
    let reply = Reply::new(line, request.header.unique, slot);
    if request.what == What::Destroy {
        reply.ok();
        return true;
    }
    // The reply is dropped by a panic, and so answered.
    if catch_unwind(AssertUnwindSafe(|| fs.answer(&request, bytes, reply))).is_err() {
        tracing::error!(opcode = request.header.opcode, "request-handler-panicked");
    }
    false
}
