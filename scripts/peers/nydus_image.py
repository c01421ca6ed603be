#!/usr/bin/env python3
"""An image in Nydus' form (RAFS v6), in a registry:  nydus_image.py PROGRAM LAYOUT REGISTRY REPOSITORY TAG

In: the program nydus-image; an OCI layout with one image, its layers gzip or plain tar; HOST:PORT of a registry without
TLS. Out: the image under that tag: of each layer a blob with its chunks, and as the last layer the metadata of all of
them merged, with the annotations by which Nydus' snapshotter knows them.
Invariant: nydus-image is asked for what its makers' converter asks it for: chunks by zstd, whiteouts left to the merge,
and a list of what to fetch ahead that says everything. Each blob is named by the SHA-256 of its bytes.
Not here: making the program (nydus.sh), running the image (loadtest/src/rivals).
"""
import gzip, hashlib, io, json, os, shutil, subprocess, sys, tarfile, tempfile, urllib.error, urllib.request

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BLOB = "application/vnd.oci.image.layer.nydus.blob.v1"
METADATA = "application/vnd.oci.image.layer.v1.tar+gzip"
LABEL = "containerd.io/snapshot/nydus-"
AHEAD = "/\n"  # all files
PIECE = 1 << 20


class Repository:
    def __init__(self, host, name):
        self.base = f"http://{host}/v2/{name}"
        # The registry is on this machine: a proxy of it must not see that.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, method, url, body=None, headers=()):
        return self.opener.open(urllib.request.Request(url, data=body, method=method, headers=dict(headers)))

    def push(self, file):
        """A blob, unless it is there; its digest and size."""
        sha256, size = hashlib.sha256(), 0
        file.seek(0)
        while piece := file.read(PIECE):
            sha256.update(piece)
            size += len(piece)
        file.seek(0)
        digest = "sha256:" + sha256.hexdigest()
        try:
            self.ask("HEAD", f"{self.base}/blobs/{digest}").close()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            with self.ask("POST", f"{self.base}/blobs/uploads/", b"") as begun:
                to = begun.headers["Location"]
            to += ("&" if "?" in to else "?") + f"digest={digest}"
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            self.ask("PUT", to, file, headers).close()
        return {"digest": digest, "size": size}

    def tag(self, name, manifest):
        self.ask("PUT", f"{self.base}/manifests/{name}", manifest, {"Content-Type": MANIFEST}).close()


def blob_path(layout, digest):
    return os.path.join(layout, "blobs", *digest.split(":"))


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def unpack(layout, layer, to):
    kind, path = layer["mediaType"], blob_path(layout, layer["digest"])
    if not kind.endswith(("tar", "gzip")):
        sys.exit(f"nydus_image: {kind} is neither gzip nor plain tar")
    opened = gzip.open if kind.endswith("gzip") else open
    with opened(path, "rb") as source, open(to, "wb") as target:
        shutil.copyfileobj(source, target, PIECE)


def nydus(program, *arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([program, *arguments], input=AHEAD, text=True, **pipes)
    if done.returncode:
        sys.exit(f"nydus_image: nydus-image {arguments[0]}: {done.stdout[-2000:]}")


def convert(program, tar, work):
    """The layer's metadata, and its blob if it has any data."""
    metadata, said = f"{work}/metadata", f"{work}/said.json"
    nydus(program, "create", "--log-level", "warn", "--type", "tar-rafs", "--fs-version", "6", "--compressor", "zstd",
          "--whiteout-spec", "none", "--prefetch-policy", "fs", "--blob-dir", work, "--bootstrap", metadata,
          "--output-json", said, tar)
    blobs = read_json(said).get("blobs") or []
    if not blobs:
        return metadata, None
    # The merge takes a blob's name from that of the file.
    named = f"{work}/{blobs[-1]}.boot"
    os.rename(metadata, named)
    return named, f"{work}/{blobs[-1]}"


def as_layer(metadata):
    """A tar with the merged metadata where the snapshotter looks for it."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        directory = tarfile.TarInfo("image")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(directory)
        archive.add(metadata, "image/image.boot")
    return tar.getvalue()


def main(program, layout, host, name, tag):
    repository = Repository(host, name)
    index = read_json(f"{layout}/index.json")["manifests"]
    if len(index) != 1:
        sys.exit(f"nydus_image: {layout} has {len(index)} images")
    manifest = read_json(blob_path(layout, index[0]["digest"]))
    config = read_json(blob_path(layout, manifest["config"]["digest"]))
    with tempfile.TemporaryDirectory() as work:
        layers, parts = [], []
        for number, layer in enumerate(manifest["layers"]):
            tar, own = f"{work}/{number}.tar", f"{work}/{number}"
            os.mkdir(own)
            unpack(layout, layer, tar)
            metadata, blob = convert(program, tar, own)
            os.unlink(tar)
            parts.append(metadata)
            if blob is None:
                continue
            with open(blob, "rb") as file:
                pushed = repository.push(file)
            if pushed["digest"] != "sha256:" + os.path.basename(blob):
                sys.exit(f"nydus_image: {blob} has the digest {pushed['digest']}")
            os.unlink(blob)
            # Two layers may have the same data.
            if pushed["digest"] not in [known["digest"] for known in layers]:
                layers.append({"mediaType": BLOB, **pushed, "annotations": {LABEL + "blob": "true"}})
        merged = f"{work}/image.boot"
        nydus(program, "merge", "--log-level", "warn", "--prefetch-policy", "fs", "--bootstrap", merged, *parts)
        tar = as_layer(merged)
    annotations = {LABEL + "bootstrap": "true", LABEL + "fs-version": "6"}
    pushed = repository.push(io.BytesIO(gzip.compress(tar, 6)))
    config["rootfs"]["diff_ids"] = [layer["digest"] for layer in layers] + ["sha256:" + hashlib.sha256(tar).hexdigest()]
    layers.append({"mediaType": METADATA, **pushed, "annotations": annotations})
    # It has an entry for each of the original's layers, of which these are not.
    config.pop("history", None)
    config_kind = manifest["config"]["mediaType"]
    described = {"mediaType": config_kind, **repository.push(io.BytesIO(json.dumps(config).encode()))}
    made = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}
    repository.tag(tag, json.dumps(made).encode())


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
