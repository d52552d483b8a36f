// Package source reads folders and tar archives, layers of container images among them, into an image.
// It touches nothing but what it is given to read: names and links of an archive only ever mean places
// inside the image, and one that would lead out of it ends the build.
package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

// maxStream bounds what an archive may unpack to, all its headers and padding counted: a little compressed
// data can be a lot of nothing. Twice the largest image leaves room for layers that replace one another.
const maxStream = 2 * erofs.DefaultMaxBytes

// Reader reads an archive, compressed by gzip, zstd or not at all, and ends with ctx.
func Reader(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(&contextReader{ctx, r}, 256<<10)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	var out io.ReadCloser = io.NopCloser(buffered)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, invalid("read archive", err)
		}
		out = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// 128 MiB is the largest window that zstd's own program makes without being asked twice.
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, invalid("read archive", err)
		}
		out = z.IOReadCloser()
	}
	return &boundedReader{out, maxStream}, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

type boundedReader struct {
	io.ReadCloser
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, tartarus.Errorf(tartarus.TooLarge, "the archive unpacks to more than %d GiB", int64(maxStream)>>30)
	}
	return n, err
}

func invalid(what string, err error) error {
	if tartarus.KindOf(err) != tartarus.Internal || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &tartarus.Error{Kind: tartarus.Invalid, Message: what + ": " + err.Error(), Err: err}
}

const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh."
)

// AddTar adds all entries of an uncompressed tar stream.
func AddTar(w *erofs.Writer, r io.Reader) error { return addTar(w, r, false) }

// AddLayer adds a layer of a container image above what w holds: its whiteouts remove what is below.
func AddLayer(w *erofs.Writer, r io.Reader) error {
	w.NextLayer()
	return addTar(w, r, true)
}

func addTar(w *erofs.Writer, r io.Reader, layer bool) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalid("read tar archive", err)
		}
		if layer {
			removed, err := white(w, h.Name)
			if err != nil {
				return err
			}
			if removed {
				continue
			}
		}
		if err := addHeader(w, h, tr); err != nil {
			return invalid("add "+shorten(h.Name), err)
		}
	}
}

func shorten(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}

// white does what a whiteout says and reports whether name is one.
func white(w *erofs.Writer, name string) (bool, error) {
	dir, base := path.Split(path.Clean("/" + name))
	if strings.Contains(name, "..") && path.Clean("/"+name) != "/"+strings.Trim(name, "/") {
		return false, nil // Add refuses it
	}
	switch {
	case base == whiteoutOpaque:
		return true, w.RemoveLowerChildren(dir)
	case strings.Contains(dir+base, "/"+whiteoutMeta):
		return true, nil // bookkeeping of the aufs file system
	case strings.HasPrefix(base, whiteout):
		return true, w.RemoveLower(dir + strings.TrimPrefix(base, whiteout))
	}
	return false, nil
}

func addHeader(w *erofs.Writer, h *tar.Header, data io.Reader) error {
	if h.Uid < 0 || h.Gid < 0 || h.Uid > math.MaxUint32 || h.Gid > math.MaxUint32 {
		return tartarus.Errorf(tartarus.Invalid, "owner %d:%d is out of range", h.Uid, h.Gid)
	}
	e := erofs.Entry{
		Path: h.Name, Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), ModTime: h.ModTime, Target: h.Linkname,
	}
	for name, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(name, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[attr] = value
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Mode, e.Size = e.Mode|erofs.TypeRegular, h.Size
		return w.Add(e, data)
	case tar.TypeLink:
		return w.Link(h.Name, h.Linkname)
	case tar.TypeDir:
		e.Mode |= erofs.TypeDir
	case tar.TypeSymlink:
		e.Mode |= erofs.TypeSymlink
	case tar.TypeFifo:
		e.Mode |= erofs.TypeFIFO
	case tar.TypeChar, tar.TypeBlock:
		e.Mode |= map[byte]uint32{tar.TypeChar: erofs.TypeChar, tar.TypeBlock: erofs.TypeBlock}[h.Typeflag]
		// 12 and 20 bits are what Linux has.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return tartarus.Errorf(tartarus.Invalid, "device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return tartarus.Errorf(tartarus.Unsupported, "entry of the unknown type %q", h.Typeflag)
	}
	return w.Add(e, nil)
}
