package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// maxEntries bounds one listing: about 40 MB of answer.
const maxEntries = 100_000

// at finds the caller's user and makes its path absolute.
func (s *Service) at(req connect.AnyRequest, path string) (account.User, string, error) {
	u, err := s.settings.Caller(req.Header())
	if err != nil {
		return u, "", err
	}
	full, err := s.resolve(u, path)
	return u, full, err
}

// Stat implements filesystemconnect.FilesystemHandler.
func (s *Service) Stat(_ context.Context, req *connect.Request[filesystempb.StatRequest]) (*connect.Response[filesystempb.StatResponse], error) {
	u, path, err := s.at(req, req.Msg.GetPath())
	if err != nil {
		return nil, fault.Connect(err)
	}
	res := &filesystempb.StatResponse{}
	err = look(u, path, func() (err error) {
		res.Entry, err = s.describe(path)
		return err
	})
	if err != nil {
		return nil, fault.Connect(notFound(path, err))
	}
	return connect.NewResponse(res), nil
}

// MakeDir implements filesystemconnect.FilesystemHandler.
func (s *Service) MakeDir(_ context.Context, req *connect.Request[filesystempb.MakeDirRequest]) (*connect.Response[filesystempb.MakeDirResponse], error) {
	u, path, err := s.at(req, req.Msg.GetPath())
	if err != nil {
		return nil, fault.Connect(err)
	}
	res := &filesystempb.MakeDirResponse{}
	err = look(u, path, func() error { return vacant(path) })
	if err == nil {
		err = makeDir(u, path)
	}
	if err == nil {
		err = look(u, path, func() (err error) {
			res.Entry, err = s.describe(path)
			return err
		})
	}
	if err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(res), nil
}

// vacant returns why no folder can be made at path, where something is there.
func vacant(path string) error {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return &tartarus.Error{Kind: tartarus.Conflict, Code: fault.AlreadyExists, Message: fmt.Sprintf("directory already exists: %s", path)}
	case err == nil:
		return tartarus.Errorf(tartarus.Invalid, "path '%s' exists and is not a directory", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// makeDir makes a folder and those above it, as u or on u's behalf.
func makeDir(u account.User, path string) error {
	err := u.Act(func() error {
		if err := makeParents(path); err != nil {
			return err
		}
		return os.Mkdir(path, 0o755)
	})
	if !refused(u, err) {
		return err
	}
	at, err := reach(u, path, true, false)
	if err != nil {
		return err
	}
	defer at.close()
	fd, err := mkdir(at, u)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// Move implements filesystemconnect.FilesystemHandler.
func (s *Service) Move(_ context.Context, req *connect.Request[filesystempb.MoveRequest]) (*connect.Response[filesystempb.MoveResponse], error) {
	u, source, err := s.at(req, req.Msg.GetSource())
	if err != nil {
		return nil, fault.Connect(err)
	}
	target, err := s.resolve(u, req.Msg.GetDestination())
	if err != nil {
		return nil, fault.Connect(err)
	}
	res := &filesystempb.MoveResponse{}
	err = u.Act(func() error {
		if _, err := os.Lstat(source); err != nil {
			return notFound(source, err)
		}
		if err := makeParents(target); err != nil {
			return err
		}
		return move(source, target)
	})
	if refused(u, err) {
		err = moveFor(u, source, target)
	}
	if err == nil {
		err = look(u, target, func() (err error) {
			res.Entry, err = s.describe(target)
			return err
		})
	}
	if err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(res), nil
}

// Remove implements filesystemconnect.FilesystemHandler. What does not exist is removed already.
func (s *Service) Remove(_ context.Context, req *connect.Request[filesystempb.RemoveRequest]) (*connect.Response[filesystempb.RemoveResponse], error) {
	u, path, err := s.at(req, req.Msg.GetPath())
	if err == nil && path == "/" {
		err = tartarus.Errorf(tartarus.Invalid, "the root folder cannot be removed")
	}
	if err == nil {
		err = remove(u, path)
	}
	if err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(&filesystempb.RemoveResponse{}), nil
}

// ListDir implements filesystemconnect.FilesystemHandler.
func (s *Service) ListDir(ctx context.Context, req *connect.Request[filesystempb.ListDirRequest]) (*connect.Response[filesystempb.ListDirResponse], error) {
	u, path, err := s.at(req, req.Msg.GetPath())
	if err != nil {
		return nil, fault.Connect(err)
	}
	res := &filesystempb.ListDirResponse{}
	listing := func(skip bool) error {
		st, err := os.Stat(path)
		if err != nil {
			return notFound(path, err)
		}
		if !st.IsDir() {
			return tartarus.Errorf(tartarus.Invalid, "path '%s' is not a directory", path)
		}
		res.Entries = nil
		return s.list(ctx, path, int(max(req.Msg.GetDepth(), 1)), skip, &res.Entries)
	}
	err = look(u, path, func() error { return listing(false) })
	if errors.Is(err, fs.ErrPermission) {
		err = u.Act(func() error { return listing(true) })
	}
	if err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(res), nil
}

// list appends the entries below path, each folder before its contents. Only the folder a client asked for is
// followed when it is a symbolic link. With skip, a folder below that cannot be read is listed without contents.
func (s *Service) list(ctx context.Context, path string, depth int, skip bool, entries *[]*filesystempb.EntryInfo) error {
	names, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		full := filepath.Join(path, name.Name())
		st, err := name.Info()
		if err != nil {
			continue // removed meanwhile
		}
		if len(*entries) == maxEntries {
			return tartarus.Errorf(tartarus.Exhausted, "more than %d entries: list with less depth", maxEntries)
		}
		*entries = append(*entries, s.entry(full, st))
		if depth <= 1 || !st.IsDir() {
			continue
		}
		err = s.list(ctx, full, depth-1, skip, entries)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !(skip && errors.Is(err, fs.ErrPermission)) {
			return err
		}
	}
	return nil
}
