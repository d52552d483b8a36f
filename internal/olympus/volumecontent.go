package olympus

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// Bounds of a listing of a volume: what a client can still make sense of.
const (
	maxVolumeEntries = 10_000
	maxVolumeDepth   = 64
)

// What new entries may do where nobody says. Which users the sandboxes have that will use them is not known here.
const (
	folderMode = 0o777
	fileMode   = 0o666
)

// volumeQuery is what the requests about a volume's content have in common.
type volumeQuery struct {
	path  string
	owner volume.Owner
	force bool
	q     url.Values
}

func readVolumeQuery(r *http.Request, mode uint32) (v volumeQuery, err error) {
	if v.q, err = parseQuery(r); err != nil {
		return v, err
	}
	if !v.q.Has("path") {
		return v, tartarus.Errorf(tartarus.Invalid, "path is needed")
	}
	v.path = path.Clean("/" + v.q.Get("path"))
	v.owner.Mode = mode
	for name, to := range map[string]*uint32{"uid": &v.owner.UID, "gid": &v.owner.GID, "mode": &v.owner.Mode} {
		if v.q.Has(name) {
			if *to, err = checkID(v.q.Get(name), name); err != nil {
				return v, err
			}
		}
	}
	if v.q.Has("force") {
		if v.force, err = strconv.ParseBool(v.q.Get("force")); err != nil {
			return v, tartarus.Errorf(tartarus.Invalid, "force must be true or false")
		}
	}
	return v, nil
}

// checkID reads a user, a group or a mode. The highest user stands for none.
func checkID(text, name string) (uint32, error) {
	most := uint64(1<<32 - 2)
	if name == "mode" {
		most = 0o7777
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > most {
		return 0, tartarus.Errorf(tartarus.Invalid, "%s %.20q must be a number from 0 to %d", name, text, most)
	}
	return uint32(n), nil
}

// listVolumeDir lists a folder, down to a depth.
func (s *Server) listVolumeDir(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, 0)
	if err != nil {
		return err
	}
	depth, err := number(v.q, "depth", 1, maxVolumeDepth, 1)
	if err != nil {
		return err
	}
	tree, release, err := s.tree(r.Context(), who, false)
	if err != nil {
		return err
	}
	defer release()
	out := []api.VolumeEntry{}
	if err := listTree(r, tree, v.path, depth, &out); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func listTree(r *http.Request, tree *volume.Tree, dir string, depth int, out *[]api.VolumeEntry) error {
	if err := r.Context().Err(); err != nil {
		return err
	}
	entries, err := tree.List(dir, maxVolumeEntries)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b volume.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range entries {
		if len(*out) == maxVolumeEntries {
			return tartarus.Errorf(tartarus.TooLarge, "there are more than %d entries below the folder: ask for less depth", maxVolumeEntries)
		}
		at := path.Join(dir, e.Name)
		*out = append(*out, answerVolumeEntry(tree, at, e.Attr))
		if depth > 1 && e.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := listTree(r, tree, at, depth-1, out); err != nil && !tartarus.Is(err, tartarus.NotFound) {
				return err
			}
		}
	}
	return nil
}

// makeVolumeDir makes a folder, with force also those above it; then one that is there will do.
func (s *Server) makeVolumeDir(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, folderMode)
	if err != nil {
		return err
	}
	tree, release, err := s.tree(r.Context(), who, true)
	if err != nil {
		return err
	}
	defer release()
	mkdir := tree.Mkdir
	if v.force {
		mkdir = tree.MkdirAll
	}
	if err := mkdir(v.path, v.owner); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return tartarus.Errorf(tartarus.Conflict, "%s is there already", v.path)
		}
		return err
	}
	return answerVolumePath(w, http.StatusCreated, tree, v.path)
}

// getVolumeFile sends a file, or a part of it.
func (s *Server) getVolumeFile(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, 0)
	if err != nil {
		return err
	}
	tree, release, err := s.tree(r.Context(), who, false)
	if err != nil {
		return err
	}
	defer release()
	f, err := tree.Open(v.path)
	if errors.Is(err, unix.EISDIR) {
		return tartarus.Errorf(tartarus.Invalid, "%s is a folder", v.path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	rc := http.NewResponseController(w)
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // the connection goes on
	http.ServeContent(patientWriter{w, rc}, r, "", info.ModTime(), f)
	return nil
}

// putVolumeFile writes a file as a whole, over what is there, with force also the folders above it.
func (s *Server) putVolumeFile(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, fileMode)
	if err != nil {
		return err
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return tartarus.Errorf(tartarus.Invalid, "Content-Encoding %.40q is not understood here: send the file as it is", e)
	}
	tree, release, err := s.tree(r.Context(), who, true)
	if err != nil {
		return err
	}
	defer release()
	if v.force {
		above := v.owner
		above.Mode = folderMode
		if err := tree.MkdirAll(path.Dir(v.path), above); err != nil {
			return err
		}
	}
	rc := http.NewResponseController(w)
	var body io.Reader = http.NoBody
	if r.Body != nil {
		body = patientBody{r, rc}
	}
	err = tree.Upload(r.Context(), v.path, body, v.owner)
	_ = rc.SetReadDeadline(time.Time{})
	if errors.Is(err, unix.EISDIR) {
		return tartarus.Errorf(tartarus.Invalid, "%s is a folder", v.path)
	}
	if err != nil {
		if _, known := errors.AsType[*tartarus.Error](err); !known && r.Context().Err() == nil {
			err = tartarus.Errorf(tartarus.Invalid, "the body did not arrive whole: %w", err)
		}
		return err
	}
	return answerVolumePath(w, http.StatusCreated, tree, v.path)
}

// getVolumePath describes an entry.
func (s *Server) getVolumePath(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, 0)
	if err != nil {
		return err
	}
	tree, release, err := s.tree(r.Context(), who, false)
	if err != nil {
		return err
	}
	defer release()
	return answerVolumePath(w, http.StatusOK, tree, v.path)
}

// setVolumePath changes owner and mode of an entry.
func (s *Server) setVolumePath(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, 0)
	if err != nil {
		return err
	}
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.VolumeEntryChange
	if err := decode(raw, &in, false); err != nil {
		return err
	}
	var change volume.Change
	for name, p := range map[string]struct {
		from *int64
		to   **uint32
	}{"uid": {in.UID, &change.UID}, "gid": {in.GID, &change.GID}, "mode": {in.Mode, &change.Mode}} {
		if p.from == nil {
			continue
		}
		n, err := checkID(strconv.FormatInt(*p.from, 10), name)
		if err != nil {
			return err
		}
		*p.to = &n
	}
	tree, release, err := s.tree(r.Context(), who, true)
	if err != nil {
		return err
	}
	defer release()
	if err := tree.Set(v.path, change); err != nil {
		return err
	}
	return answerVolumePath(w, http.StatusOK, tree, v.path)
}

// deleteVolumePath removes an entry and all below it.
func (s *Server) deleteVolumePath(w http.ResponseWriter, r *http.Request, who caller) error {
	v, err := readVolumeQuery(r, 0)
	if err != nil {
		return err
	}
	tree, release, err := s.tree(r.Context(), who, true)
	if err != nil {
		return err
	}
	defer release()
	if err := tree.RemoveAll(v.path); err != nil {
		return err
	}
	noContent(w)
	return nil
}

func answerVolumePath(w http.ResponseWriter, status int, tree *volume.Tree, at string) error {
	attr, err := tree.Stat(at)
	if err != nil {
		return err
	}
	writeJSON(w, status, answerVolumeEntry(tree, at, attr))
	return nil
}

func answerVolumeEntry(tree *volume.Tree, at string, a volume.Attr) api.VolumeEntry {
	out := api.VolumeEntry{
		Name: path.Base(at), Path: at, Size: a.Size, Mode: a.Mode &^ unix.S_IFMT, UID: a.UID, GID: a.GID,
		Atime: a.Atime.UTC(), Mtime: a.Mtime.UTC(), Ctime: a.Ctime.UTC(),
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Type = "file"
	case unix.S_IFDIR:
		out.Type = "directory"
	case unix.S_IFLNK:
		out.Type = "symlink"
		out.Target, _ = tree.Readlink(at) // gone meanwhile
	default:
		out.Type = "unknown"
	}
	return out
}
