// Package files serves the guest's file system: the Connect service filesystem.Filesystem, and contents over
// HTTP. Everything is done as the user the client named, or on that user's behalf, never at the bidding of what runs in the
// guest; and contents are streamed: no file is ever held in memory.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tartarus-sandbox/tartarus"
	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
)

// Config wires a Service.
type Config struct {
	Settings *settings.Store
	Log      *slog.Logger
}

// Service answers for files. It is safe for concurrent use.
type Service struct {
	settings *settings.Store
	log      *slog.Logger
	pollers  pollers
}

// New makes a Service.
func New(c Config) *Service {
	return &Service{settings: c.Settings, log: c.Log}
}

// resolve makes a client's path absolute for u.
func (s *Service) resolve(u account.User, path string) (string, error) {
	return u.Resolve(path, s.settings.Load().Workdir)
}

// describe makes the entry of path. It runs with the permissions of the caller's user.
func (s *Service) describe(path string) (*filesystempb.EntryInfo, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return s.entry(path, st), nil
}

func (s *Service) entry(path string, st fs.FileInfo) *filesystempb.EntryInfo {
	uid, gid := owner(st)
	e := &filesystempb.EntryInfo{
		Name: filepath.Base(path), Path: path, Type: typeOf(st.Mode()), Size: st.Size(),
		Mode: uint32(st.Mode().Perm()), Permissions: st.Mode().String(),
		Owner: s.settings.Book().UserName(uid), Group: s.settings.Book().GroupName(gid),
		ModifiedTime: timestamppb.New(st.ModTime()), Metadata: readMetadata(path),
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		follow(e, path)
	}
	return e
}

// follow completes the entry of a symbolic link: it tells type and permissions of what it leads to, as SDKs expect,
// and where that is.
func follow(e *filesystempb.EntryInfo, path string) {
	e.IsSymlink = true
	if target, err := filepath.EvalSymlinks(path); err == nil {
		if st, err := os.Stat(target); err == nil {
			e.SymlinkTarget, e.Type, e.Mode = &target, typeOf(st.Mode()), uint32(st.Mode().Perm())
			return
		}
	}
	// It leads nowhere, or nowhere this user may look.
	e.Type = filesystempb.FileType_FILE_TYPE_SYMLINK
	if target, err := os.Readlink(path); err == nil {
		e.SymlinkTarget = &target
	}
}

func typeOf(m fs.FileMode) filesystempb.FileType {
	switch {
	case m.IsRegular():
		return filesystempb.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return filesystempb.FileType_FILE_TYPE_DIRECTORY
	case m&fs.ModeSymlink != 0:
		return filesystempb.FileType_FILE_TYPE_SYMLINK
	}
	return filesystempb.FileType_FILE_TYPE_UNSPECIFIED
}

// makeParents makes the folders above path. It runs with the permissions of the caller's user, who
// therefore owns them.
func makeParents(path string) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if pe, ok := errors.AsType[*fs.PathError](err); ok && isNotDir(pe) {
		return tartarus.Errorf(tartarus.Invalid, "'%s' is not a directory", pe.Path)
	}
	return err
}

func notFound(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &tartarus.Error{Kind: tartarus.NotFound, Message: fmt.Sprintf("path '%s' does not exist", path), Err: err}
	}
	return fmt.Errorf("'%s': %w", path, err)
}
