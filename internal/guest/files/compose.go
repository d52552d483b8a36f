package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// maxCompose bounds the body of a compose request: some thousand long paths.
const maxCompose = 4 << 20

// Compose answers POST /files/compose: it joins files that were uploaded in parts, and removes the parts.
// The destination appears whole or not at all.
func (s *Service) Compose(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Sources     []string `json:"source_paths"`
		Destination string   `json:"destination"`
		Username    string   `json:"username"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCompose)).Decode(&req); err != nil {
		fault.HTTP(w, bodyError(err))
		return
	}
	done, err := s.compose(r.Header, req.Sources, req.Destination, req.Username)
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	writeJSON(w, done)
}

func (s *Service) compose(h http.Header, sources []string, destination, username string) (*written, error) {
	switch {
	case len(sources) == 0:
		return nil, tartarus.Errorf(tartarus.Invalid, "source_paths must not be empty")
	case len(sources) > maxParts:
		return nil, tartarus.Errorf(tartarus.TooLarge, "more than %d source_paths", maxParts)
	case destination == "":
		return nil, tartarus.Errorf(tartarus.Invalid, "destination is required")
	}
	u, err := s.settings.Caller(h)
	if username != "" {
		u, err = s.settings.User(username)
	}
	if err != nil {
		return nil, err
	}
	meta, err := metadataOf(h)
	if err != nil {
		return nil, err
	}
	target, err := s.resolve(u, destination)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(sources))
	for i, source := range sources {
		if paths[i], err = s.resolve(u, source); err != nil {
			return nil, err
		}
		if paths[i] == target {
			return nil, tartarus.Errorf(tartarus.Invalid, "source path '%s' is the destination", source)
		}
	}
	if err := join(u, paths, target, meta); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = &tartarus.Error{Kind: tartarus.Exhausted, Code: fault.NoSpace, Message: "not enough disk space", Err: err}
		}
		return nil, err
	}
	return &written{Path: target, Name: filepath.Base(target), Type: "file", Metadata: meta}, nil
}

// join writes the parts one after the other beside target, renames, and removes the parts.
func join(u account.User, paths []string, target string, meta map[string]string) error {
	if err := look(u, target, func() error { return noFolder(target) }); err != nil {
		return err
	}
	for _, path := range paths {
		if err := look(u, path, func() error { return regular(path) }); err != nil {
			return err
		}
	}
	err := u.Act(func() error {
		if err := makeParents(target); err != nil {
			return err
		}
		return joinAt(paths, target, meta, nil)
	})
	if refused(u, err) {
		err = joinFor(u, paths, target, meta)
	}
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := remove(u, path); err != nil { // a part may be named twice
			return fmt.Errorf("remove part: %w", err)
		}
	}
	return nil
}

// joinFor joins on u's behalf.
func joinFor(u account.User, paths []string, target string, meta map[string]string) error {
	for _, path := range paths {
		if !trusted(u, path) {
			return tartarus.Errorf(tartarus.Forbidden, "source path '%s': permission denied", path)
		}
	}
	at, err := reach(u, target, true, false)
	if err != nil {
		return err
	}
	defer at.close()
	return plain(joinAt(paths, at.path(), meta, &u), target)
}

// joinAt makes the joined file appear at target, whole and with its owner.
func joinAt(paths []string, target string, meta map[string]string, owner *account.User) error {
	stage, err := os.CreateTemp(filepath.Dir(target), ".compose-*")
	if err != nil {
		return err
	}
	defer os.Remove(stage.Name())
	err = errors.Join(concat(stage, paths), stage.Chmod(0o644), writeMetadata(int(stage.Fd()), meta))
	if err == nil && owner != nil {
		err = stage.Chown(int(owner.UID), int(owner.GID))
	}
	if err := errors.Join(err, stage.Close()); err != nil {
		return err
	}
	return os.Rename(stage.Name(), target)
}

func noFolder(path string) error {
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		return tartarus.Errorf(tartarus.Invalid, "path is a directory: %s", path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func regular(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return notFound(path, err)
	}
	if !st.Mode().IsRegular() {
		return tartarus.Errorf(tartarus.Invalid, "source path '%s' is not a regular file", path)
	}
	return nil
}

func concat(out *os.File, paths []string) error {
	for _, path := range paths {
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
