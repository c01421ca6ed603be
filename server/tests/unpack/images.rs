//! Real images: the demo's, and those that are named.
//!
//! In: Debian's packages as the playground builds an image of them; with `HEADSTART_IMAGES` (directories, separated by
//! colons) every layer below those. Out: each layer's tree is what containerd unpacks.
//! Not here: mounting them (`loadtest/tests/e2e`).

use headstart_loadtest::corpus::layer_files;
use headstart_loadtest::playground::{containerd::Release, image, progress::Progress, site::Site, workdir::WorkDir};

use crate::compressed::GZIP;
use crate::runtime::Runtime;

#[test]
fn layers_of_real_images_become_what_containerd_unpacks() {
    let site = Site::of_this_executable().unwrap();
    let runtime = Runtime::start(Release::Machine);
    let work = WorkDir::create().unwrap();
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let silent = Progress::silent();
    let demo = image::storage(&site, &work, &silent);
    let mut files = layer_files(&tokio.block_on(demo).unwrap()).unwrap();
    let named = std::env::var_os("HEADSTART_IMAGES").unwrap_or_default();
    for dir in std::env::split_paths(&named).filter(|d| !d.as_os_str().is_empty()) {
        files.extend(layer_files(&dir).unwrap());
    }
    let mut compared = 0;
    for file in &files {
        let verdicts = runtime.unpack(&std::fs::read(file).unwrap(), GZIP);
        assert_eq!(verdicts.difference(), None, "{}", file.display());
        assert!(verdicts.unpacked(), "{}", file.display());
        compared += verdicts.theirs.map_or(0, |tree| tree.0.len());
    }
    assert!(files.len() >= 3 && compared > 3_000, "{compared} paths in {files:?}");
    println!("{compared} paths in {} layers", files.len());
}
