package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/watch"
)

// watching is one client's watch on a folder.
type watching struct {
	*watch.Watcher
	service  *Service
	act      func(do func() error) error
	root     string
	describe bool
}

// watchRequest is what both ways of watching ask for.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

func (s *Service) watch(req connect.AnyRequest, ask watchRequest) (*watching, error) {
	u, path, err := s.at(req, ask.GetPath())
	if err != nil {
		return nil, err
	}
	act := u.Act
	check := func() error {
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return notFound(path, err)
		case !st.IsDir():
			return tartarus.Errorf(tartarus.Invalid, "path '%s' is not a directory", path)
		case ask.GetAllowNetworkMounts():
			return nil
		}
		remote, err := watch.NetworkMount(path)
		if err == nil && remote {
			err = tartarus.Errorf(tartarus.Invalid, "path '%s' is on a network file system, whose changes are not all seen: allow network mounts to watch it nevertheless", path)
		}
		return err
	}
	open := func() (w *watch.Watcher, err error) {
		if err := act(check); err != nil {
			return nil, err
		}
		return watch.New(path, ask.GetRecursive(), act)
	}
	w, err := open()
	if refused(u, err) && trusted(u, path) {
		act = func(do func() error) error { return do() } // on the user's behalf, for as long as it is watched
		w, err = open()
	}
	if err != nil {
		return nil, err
	}
	return &watching{Watcher: w, service: s, act: act, root: path, describe: ask.GetIncludeEntry()}, nil
}

// next waits for changes and words them for the wire.
func (w *watching) next(ctx context.Context) ([]*filesystempb.FilesystemEvent, error) {
	changes, err := w.Next(ctx)
	if err != nil {
		return nil, err
	}
	events := make([]*filesystempb.FilesystemEvent, 0, len(changes))
	for _, c := range changes {
		// The numbers of watch.Op are those of the wire.
		events = append(events, &filesystempb.FilesystemEvent{Name: c.Name, Type: filesystempb.EventType(c.Op)})
	}
	if !w.describe {
		return events, nil
	}
	return events, w.act(func() error {
		for _, e := range events {
			// A file that is gone again has no entry.
			e.Entry, _ = w.service.describe(filepath.Join(w.root, e.Name))
		}
		return nil
	})
}

// WatchDir implements filesystemconnect.FilesystemHandler.
func (s *Service) WatchDir(ctx context.Context, req *connect.Request[filesystempb.WatchDirRequest], stream *connect.ServerStream[filesystempb.WatchDirResponse]) error {
	w, err := s.watch(req, req.Msg)
	if err != nil {
		return fault.Connect(err)
	}
	defer w.Close()
	err = stream.Send(&filesystempb.WatchDirResponse{Event: &filesystempb.WatchDirResponse_Start{Start: &filesystempb.WatchDirResponse_StartEvent{}}})
	interval := process.KeepaliveInterval(req.Header())
	for err == nil {
		err = s.relay(ctx, w, interval, stream)
	}
	return fault.Connect(err)
}

// relay sends the next changes, or a sign of life when none come for a while.
func (s *Service) relay(ctx context.Context, w *watching, interval time.Duration, stream *connect.ServerStream[filesystempb.WatchDirResponse]) error {
	quiet, cancel := context.WithTimeout(ctx, interval)
	defer cancel()
	events, err := w.next(quiet)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return stream.Send(&filesystempb.WatchDirResponse{Event: &filesystempb.WatchDirResponse_Keepalive{Keepalive: &filesystempb.WatchDirResponse_KeepAlive{}}})
	case err != nil:
		return err
	}
	for _, e := range events {
		if err := stream.Send(&filesystempb.WatchDirResponse{Event: &filesystempb.WatchDirResponse_Filesystem{Filesystem: e}}); err != nil {
			return fmt.Errorf("send event: %w", err)
		}
	}
	return nil
}
