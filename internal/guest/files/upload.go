package files

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// maxParts bounds the files of one upload.
const maxParts = 10_000

// written is what a client is told of a file it wrote.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// upload is one request that writes files.
type upload struct {
	service *Service
	user    account.User
	meta    map[string]string
	done    []written
}

// Upload answers POST /files. A file that exists keeps its mode, and its owner where the user may write it; one that does not is
// made the user's, with the folders above it.
func (s *Service) Upload(w http.ResponseWriter, r *http.Request) {
	up, err := s.receive(r)
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	writeJSON(w, up.done)
}

func (s *Service) receive(r *http.Request) (*upload, error) {
	query := r.URL.Query()
	u, err := s.httpUser(r, query)
	if err != nil {
		return nil, err
	}
	meta, err := metadataOf(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := decoded(r)
	if err != nil {
		return nil, err
	}
	up := &upload{service: s, user: u, meta: meta, done: []written{}}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err == nil && media == "application/octet-stream":
		if !query.Has("path") {
			return nil, tartarus.Errorf(tartarus.Invalid, "an application/octet-stream upload needs the query parameter path")
		}
		return up, up.write(query.Get("path"), body)
	case err == nil && strings.HasPrefix(media, "multipart/"):
		if params["boundary"] == "" {
			return nil, tartarus.Errorf(tartarus.Invalid, "the multipart body has no boundary")
		}
		return up, up.parts(multipart.NewReader(body, params["boundary"]), query)
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "content type %q is neither multipart/form-data nor application/octet-stream", r.Header.Get("Content-Type"))
}

// httpUser finds the user of a plain request: the query names it, as SDKs do, or Basic credentials.
func (s *Service) httpUser(r *http.Request, query url.Values) (account.User, error) {
	if name := query.Get("username"); name != "" {
		return s.settings.User(name)
	}
	return s.settings.Caller(r.Header)
}

// decoded undoes the Content-Encoding of a request.
func decoded(r *http.Request) (io.Reader, error) {
	switch encoding := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "the body is not gzip: %w", err)
		}
		return z, nil
	default:
		return nil, tartarus.Errorf(tartarus.Invalid, "content encoding %q is not known: use gzip", encoding)
	}
}

// parts writes every part named "file". Its file name is the path, unless the query gives one.
func (up *upload) parts(form *multipart.Reader, query url.Values) error {
	for n := 0; ; n++ {
		part, err := form.NextRawPart()
		if err == io.EOF { // a wrapped EOF would be a body that breaks off
			return nil
		}
		if err != nil {
			return bodyError(err)
		}
		if n == maxParts {
			return tartarus.Errorf(tartarus.TooLarge, "more than %d parts in one upload", maxParts)
		}
		if part.FormName() != "file" {
			continue
		}
		path := query.Get("path")
		if !query.Has("path") {
			if path, err = partPath(part); err != nil {
				return err
			}
		}
		if err := up.write(path, part); err != nil {
			return err
		}
	}
}

// partPath reads the whole file name of a part: Part.FileName would drop its folders.
func partPath(part *multipart.Part) (string, error) {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return "", tartarus.Errorf(tartarus.Invalid, "the part's Content-Disposition: %w", err)
	}
	if params["filename"] == "" {
		return "", tartarus.Errorf(tartarus.Invalid, "the part has no file name, and the query gives no path")
	}
	return params["filename"], nil
}

// write writes one file.
func (up *upload) write(name string, body io.Reader) error {
	path, err := up.service.resolve(up.user, name)
	if err != nil {
		return err
	}
	for _, d := range up.done {
		if d.Path == path {
			return tartarus.Errorf(tartarus.Invalid, "you cannot upload multiple files to the same path '%s' in one upload request, only the first one was written", path)
		}
	}
	file, fresh, err := openAs(up.user, path)
	if refused(up.user, err) {
		file, fresh, err = openFor(up.user, path)
	}
	if err != nil {
		return err
	}
	n, err := pour(file, body)
	if err == nil {
		err = writeMetadata(int(file.Fd()), up.meta)
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err != nil {
		if fresh {
			// Half a file that nobody had before helps nobody, least of all on a full disk.
			_ = remove(up.user, path)
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return &tartarus.Error{Kind: tartarus.Exhausted, Code: fault.NoSpace, Err: err,
				Message: fmt.Sprintf("not enough disk space: '%s' could be written up to byte %d", path, n)}
		}
		return err
	}
	up.service.log.Debug("file written", "path", path, "bytes", n)
	up.done = append(up.done, written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: up.meta})
	return nil
}

// openAs opens path for writing as u would, and reports whether it was made just now.
func openAs(u account.User, path string) (file *os.File, fresh bool, err error) {
	err = u.Act(func() (err error) {
		if err = makeParents(path); err != nil {
			return err
		}
		file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil || !errors.Is(err, fs.ErrExist) {
			fresh = err == nil
			return err
		}
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			return tartarus.Errorf(tartarus.Invalid, "path is a directory: %s", path)
		}
		// Not blocking: a pipe that nobody reads must not hold the request.
		file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o666)
		return err
	})
	return file, fresh, err
}

// blocks are what bodies are copied with; the size is where throughput stops growing on loopback.
var blocks = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// pour copies body into file and tells trouble with the one from trouble with the other.
func pour(file *os.File, body io.Reader) (int64, error) {
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	var total int64
	for {
		n, err := body.Read(*block)
		if n > 0 {
			if _, err := file.Write((*block)[:n]); err != nil {
				return total, err
			}
			total += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, bodyError(err)
		}
	}
}

// bodyError words an error of reading a request's body: the client's, whatever it is.
func bodyError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	return tartarus.Errorf(tartarus.Invalid, "read the body: %w", err)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // a client that is gone is not told
}
