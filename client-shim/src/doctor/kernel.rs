//! What the kernel can do, by trying it.
//!
//! In: `/proc`, a scratch directory below `root_dir`. Out: checks; whether layers can be mounted idmapped.
//! Invariant: what is mounted to try is unmounted. A version is named, never judged by.
//! Not here: the trial of EROFS itself ([`crate::presentation`]).

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Report;
use crate::cache::{LazyConfig, PresentationChoice, WholeLayers};
use crate::config::Config;
use crate::counters::Counters;
use crate::observe::status::Status;
use crate::presentation::{self, Surroundings};
use crate::snapshotter::idmap;
use crate::survival::Keeper;

/// Whether containers in user namespaces can have idmapped layers; `None`: not found out.
pub(super) fn check(report: &mut Report, config: &Config, running: Option<&Status>, runtime: &Handle) -> Option<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.ok("kernel.version", release.trim());
    filesystems(report);
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => report.ok("kernel.fuse_device", "/dev/fuse opens"),
        Err(error) => report.fail(
            "kernel.fuse_device",
            format!("/dev/fuse does not open: {error}"),
            "load the module (modprobe fuse, and a line fuse in /etc/modules-load.d/headstart.conf); in a container, give \
             it the device",
        ),
    }
    // Beside the directories of a shim that runs.
    let scratch = match config.root_dir.is_dir() {
        true => config.root_dir.join("doctor"),
        false => std::env::temp_dir().join(format!("headstart-doctor-{}", std::process::id())),
    };
    let tried =
        std::fs::create_dir_all(&scratch).map(|()| try_presentation(report, config, running, &scratch, runtime));
    let _ = std::fs::remove_dir_all(&scratch);
    tried.ok().flatten()
}

fn filesystems(report: &mut Report) {
    let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| all.lines().any(|l| l.split_whitespace().last() == Some(name));
    if has("overlay") {
        report.ok("kernel.overlay", "overlayfs is there");
    } else {
        report.fail(
            "kernel.overlay",
            "the kernel does not know overlayfs",
            "modprobe overlay, and a line overlay in /etc/modules-load.d/headstart.conf",
        );
    }
    if !has("erofs") {
        // mount(2) loads it by itself where modules may be loaded, so the trial decides.
        let _ = std::process::Command::new("modprobe").arg("erofs").output();
    }
}

fn try_presentation(
    report: &mut Report,
    config: &Config,
    running: Option<&Status>,
    scratch: &Path,
    runtime: &Handle,
) -> Option<bool> {
    let lazy = LazyConfig {
        presentation: PresentationChoice::Erofs,
        ..config.lazy.clone()
    };
    let store = scratch.to_owned();
    // A trial: nobody keeps it, and there is nothing to take over.
    let open = |lazy: &LazyConfig| {
        presentation::open(&Surroundings {
            root: scratch,
            store: &store,
            config: lazy,
            counters: &Arc::new(Counters::default()),
            runtime,
            layers: &[],
            keeper: &Keeper::nobody(),
            resend: false,
        })
    };
    let erofs = open(&lazy);
    let shown = running.and_then(|s| s.presentation.as_deref());
    match &erofs {
        Ok(_) if shown == Some("fuse") || config.lazy.presentation == PresentationChoice::Fuse => report.warn(
            "kernel.erofs",
            "this kernel can show layers as EROFS, and the shim shows them by FUSE",
            "set presentation = \"auto\" in [lazy] of shim.toml and restart it: walks and warm reads are several times \
             quicker",
        ),
        Ok(_) => report.ok(
            "kernel.erofs",
            "layers can be shown as EROFS, also below overlayfs (tried)",
        ),
        Err(error) => report.warn(
            "kernel.erofs",
            format!("layers cannot be shown as EROFS: failed to {error}"),
            "layers are shown by FUSE instead, which works and is slower; a kernel from 6.12 on with EROFS does better",
        ),
    }
    let by_itself = config.lazy.whole_layers != WholeLayers::Auto || presentation::kernel_is_trusted();
    if erofs.is_ok() && !by_itself {
        report.warn(
            "kernel.whole_layers",
            "this kernel may read files below EROFS wrongly (CVE-2026-23224, and zeros where a reader was killed), so layers \
             that are whole are read through the shim",
            "a kernel from 6.12.80, 6.18.21, 6.19.11 or 7.0 on reads them by itself; if your distribution's has both mends, \
             set whole_layers = \"direct\" in [lazy] of shim.toml",
        );
    }
    let wanted = match (&erofs, config.lazy.presentation) {
        (_, PresentationChoice::Fuse) | (Err(_), _) => PresentationChoice::Fuse,
        (Ok(_), _) => PresentationChoice::Erofs,
    };
    if let Ok(open) = erofs {
        open.close();
    }
    let fuse = LazyConfig {
        presentation: PresentationChoice::Fuse,
        ..lazy
    };
    let opened = match open(&fuse) {
        Ok(opened) => opened,
        Err(error) => {
            report.fail(
                "kernel.fuse",
                format!("layers cannot be shown by FUSE: failed to {error}"),
                "without it nothing is lazy on this node; see kernel.fuse_device",
            );
            return None;
        }
    };
    report.ok("kernel.fuse", "a FUSE mount works (tried)");
    // EROFS images can be since 5.19; it is FUSE that came late.
    let tried = match wanted {
        PresentationChoice::Fuse => idmap::try_idmapped(&scratch.join("mnt")),
        _ => idmap::try_idmapped(scratch),
    };
    opened.close();
    match &tried {
        Ok(()) => report.ok(
            "kernel.idmap",
            "layers can be mounted with other owners, for user namespaces (tried)",
        ),
        Err(error) => report.ok(
            "kernel.idmap",
            format!(
                "layers cannot be mounted with other owners ({error}); containerd copies images for user namespaces"
            ),
        ),
    }
    Some(tried.is_ok())
}
