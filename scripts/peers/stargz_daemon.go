// The stargz snapshotter as a service: what Debian packages is its library.
//
//	stargz-daemon DIRECTORY SOCKET CONFIG
//
// In: a directory of its own, the socket on which containerd asks, and the library's configuration as JSON. Out: answers,
// until a signal; SIGINT takes the mounts down, SIGTERM leaves them. Not here: anything of Headstart.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	lazyfs "github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func run(directory, socket, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	config := new(service.Config)
	if err := json.Unmarshal(text, config); err != nil {
		return fmt.Errorf("parse %s: %w", file, err)
	}
	if err := os.MkdirAll(directory, 0o711); err != nil {
		return err
	}
	if err := service.Supported(directory); err != nil {
		return err
	}
	inMemory := service.WithFilesystemOptions(lazyfs.WithMetadataStore(memory.NewReader))
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), directory, config, inMemory)
	if err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case got := <-signals:
		if got == os.Interrupt {
			return snapshotter.Close()
		}
		return nil
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: stargz-daemon DIRECTORY SOCKET CONFIG")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz-daemon:", err)
		os.Exit(1)
	}
}
