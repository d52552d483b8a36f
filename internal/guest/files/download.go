package files

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// Download answers GET /files.
func (s *Service) Download(w http.ResponseWriter, r *http.Request) {
	file, st, err := s.open(r)
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	defer file.Close()
	zip, err := encoding(r.Header.Values("Accept-Encoding"))
	if err != nil {
		fault.HTTP(w, err)
		return
	}
	h := w.Header()
	h.Set("Vary", "Accept-Encoding")
	h.Set("Content-Disposition", disposition(filepath.Base(st.Name())))
	for _, conditional := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
		// Ranges and validators belong to the file as it is, not to its compressed form.
		zip = zip && r.Header.Get(conditional) == ""
	}
	if pseudo(file, st) {
		err = servePseudo(w, r, file)
	} else if zip {
		err = serveGzip(w, r, file)
	} else {
		h.Set("ETag", etag(st))
		http.ServeContent(w, r, st.Name(), st.ModTime(), file)
	}
	if err != nil {
		s.log.Debug("download cut short", "path", file.Name(), "error", err)
		// The status is out. An aborted connection is the one way left to say that this is not the whole file.
		panic(http.ErrAbortHandler)
	}
}

// open opens what the request asks for, as its user would.
func (s *Service) open(r *http.Request) (*os.File, os.FileInfo, error) {
	query := r.URL.Query()
	u, err := s.httpUser(r, query)
	if err != nil {
		return nil, nil, err
	}
	path, err := s.resolve(u, query.Get("path"))
	if err != nil {
		return nil, nil, err
	}
	var file *os.File
	err = look(u, path, func() (err error) {
		// Not blocking: a pipe without a writer must not hold the request.
		file, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, nil, notFound(path, err)
	}
	st, err := file.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		err = tartarus.Errorf(tartarus.Invalid, "path '%s' is a directory", path)
	case !st.Mode().IsRegular():
		err = tartarus.Errorf(tartarus.Invalid, "path '%s' is not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, st, nil
}

func disposition(name string) string {
	if v := mime.FormatMediaType("inline", map[string]string{"filename": name}); v != "" {
		return v
	}
	return "inline"
}

// etag tells versions of a file apart by time to the nanosecond and size, without reading it.
func etag(st os.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, st.ModTime().UnixNano(), st.Size())
}

// pseudo reports whether the size of a file says nothing: procfs and its like give 0 or a page, and what is read
// is made at that moment.
func pseudo(file *os.File, st os.FileInfo) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(int(file.Fd()), &fs) == nil {
		switch int64(fs.Type) & 0xffffffff {
		case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC:
			return true
		}
	}
	return st.Size() == 0
}

// servePseudo serves a file until it ends, whatever its size claims to be.
func servePseudo(w http.ResponseWriter, r *http.Request, file *os.File) error {
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	n, err := io.ReadFull(file, *block)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		w.Header().Set("Content-Length", strconv.Itoa(n)) // that was all of it
	case err != nil:
		fault.HTTP(w, err)
		return nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if n > 0 {
		w.Header().Set("Content-Type", http.DetectContentType((*block)[:n]))
	}
	if r.Method == http.MethodHead {
		return nil
	}
	if _, werr := w.Write((*block)[:n]); werr != nil || err != nil {
		return werr
	}
	_, err = io.Copy(w, file)
	return err
}

func serveGzip(w http.ResponseWriter, r *http.Request, file *os.File) error {
	kind := mime.TypeByExtension(filepath.Ext(file.Name()))
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return nil
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	block := blocks.Get().(*[]byte)
	defer blocks.Put(block)
	if _, err := io.CopyBuffer(z, struct{ io.Reader }{file}, *block); err != nil {
		return err
	}
	return z.Close()
}

// encoding decides by Accept-Encoding whether to compress. A client that accepts neither gzip nor the plain file is
// told so with 406.
func encoding(headers []string) (zip bool, err error) {
	weight := map[string]float64{}
	for item := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, params, _ := strings.Cut(item, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "" {
			continue
		}
		weight[name] = 1
		if _, q, ok := strings.Cut(params, "="); ok {
			if weight[name], err = strconv.ParseFloat(strings.TrimSpace(q), 64); err != nil {
				return false, tartarus.Errorf(tartarus.Invalid, "Accept-Encoding: weight %q of %s is not a number", q, name)
			}
		}
	}
	any, hasAny := weight["*"]
	of := func(name string, otherwise float64) float64 {
		if q, ok := weight[name]; ok {
			return q
		}
		if hasAny {
			return any
		}
		return otherwise
	}
	gz, plain := of("gzip", 0), of("identity", 0.001)
	if gz <= 0 && plain <= 0 {
		return false, &tartarus.Error{Kind: tartarus.Invalid, Code: fault.NotAcceptable, Message: "the client accepts neither gzip nor identity"}
	}
	return gz > 0 && gz >= plain, nil
}
