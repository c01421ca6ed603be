//! A playground that stays up to look around in.
//!
//! In: a lab. Out: a proxy and two nodes, ordinary and lazy, both with the image pulled; and what to type.
//! Invariant: runs until its future is dropped, and then leaves nothing.
//! Not here: the signal that ends it ([`super::cli`]).

use super::{Result, lab::Lab, node, node::Pulls, progress::Progress, recipe, tools};

pub async fn run(lab: &Lab, progress: &Progress) -> Result<()> {
    progress.step("playground: a proxy, an ordinary node and a lazy node");
    let proxy = lab.proxy("proxy").await?;
    let ordinary = lab.node("node-ordinary", Pulls::Ordinary, Some(&proxy)).await?;
    ordinary.pull().await?;
    let lazy = lab.node("node-lazy", Pulls::Lazy, Some(&proxy)).await?;
    lazy.pull().await?;

    let image = node::image_reference();
    let command = recipe::COMMAND.join(" ");
    let ctr = tools::find("ctr").unwrap_or_else(|| "ctr".into());
    let (lazy_run, ordinary_run) = (lazy.run_script()?, ordinary.run_script()?);
    let lazy_shim = lazy
        .shim
        .as_ref()
        .map(|s| s.socket.display().to_string())
        .unwrap_or_default();
    println!(
        "\nThe playground is up. Everything it has is below {work}\n\n\
         upstream registry  {upstream}\n\
         server             {server}   (try {server}/metrics, {server}/headstart/v1/images/{manifest})\n\
         lazy node          {lazy_socket}\n\
         \x20 shim             {lazy_shim}\n\
         ordinary node      {ordinary_socket}\n\
         logs               {work}/log\n\n\
         Start the container lazily:\n  sh {lazy_run} {image} try1 {command}\n\
         Look around in it:\n  sh {lazy_run} -t {image} try2 bash\n\
         The ordinary way:\n  sh {ordinary_run} {image} try3 {command}\n\
         What the lazy node's containerd knows:\n  {ctr} -a {lazy_socket} -n k8s.io snapshots --snapshotter headstart tree\n\
         Another client:\n  skopeo inspect --tls-verify=false docker://{address}/{image}\n\n\
         Ctrl-C ends it and removes everything.",
        work = lab.work.path().display(),
        upstream = lab.upstream.url(),
        server = proxy.proxy.url(),
        address = proxy.proxy.address(),
        manifest = lab.image.manifest,
        lazy_socket = lazy.containerd.socket.display(),
        ordinary_socket = ordinary.containerd.socket.display(),
        lazy_run = lazy_run.display(),
        ordinary_run = ordinary_run.display(),
        ctr = ctr.display(),
    );
    progress.step("running; Ctrl-C ends it");
    std::future::pending::<()>().await;
    Ok(())
}
