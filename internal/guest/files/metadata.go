package files

import (
	"errors"
	"net/http"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

const (
	metadataHeader = "X-Metadata-"
	metadataXattr  = "user.e2b."
	// maxMetadata is what clients may attach to one file, keys and values together. It is also what ext4
	// holds in one block of extended attributes.
	maxMetadata = 4096
	// maxXattrName is XATTR_NAME_MAX of Linux.
	maxXattrName = 255
)

// metadataOf reads the metadata that an upload carries in its headers. Keys are lower case, because header
// names have no case.
func metadataOf(h http.Header) (map[string]string, error) {
	var meta map[string]string
	total := 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, metadataHeader)
		if !ok {
			continue
		}
		key = strings.ToLower(key)
		if key == "" || len(metadataXattr)+len(key) > maxXattrName {
			return nil, tartarus.Errorf(tartarus.Invalid, "metadata key %q must have 1 to %d characters", key, maxXattrName-len(metadataXattr))
		}
		if len(values) != 1 {
			return nil, tartarus.Errorf(tartarus.Invalid, "metadata key %q is given more than once", key)
		}
		for _, c := range []byte(values[0]) {
			if c < 0x20 || c > 0x7e {
				return nil, tartarus.Errorf(tartarus.Invalid, "metadata value of %q must be printable ASCII", key)
			}
		}
		if meta == nil {
			meta = make(map[string]string)
		}
		meta[key] = values[0]
		total += len(key) + len(values[0])
	}
	if total > maxMetadata {
		return nil, tartarus.Errorf(tartarus.Invalid, "metadata of %d bytes is over the limit of %d", total, maxMetadata)
	}
	return meta, nil
}

// writeMetadata makes meta the whole metadata of the open file.
func writeMetadata(fd int, meta map[string]string) error {
	for _, name := range xattrNames(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) }) {
		if _, keep := meta[name[len(metadataXattr):]]; !keep {
			if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return err
			}
		}
	}
	for k, v := range meta {
		if err := unix.Fsetxattr(fd, metadataXattr+k, []byte(v), 0); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return &tartarus.Error{Kind: tartarus.Unsupported, Message: "the file system does not keep metadata", Err: err}
			}
			return fault.OS(err)
		}
	}
	return nil
}

// readMetadata reads the metadata of what path leads to. A file system without extended attributes has none.
func readMetadata(path string) map[string]string {
	var meta map[string]string
	for _, name := range xattrNames(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) }) {
		var buf [maxMetadata]byte
		n, err := unix.Getxattr(path, name, buf[:])
		if err != nil {
			continue // removed meanwhile, or set by somebody to more than we would store
		}
		if meta == nil {
			meta = make(map[string]string)
		}
		meta[name[len(metadataXattr):]] = strings.ToValidUTF8(string(buf[:n]), "\uFFFD")
	}
	return meta
}

// xattrNames lists the extended attributes that are metadata.
func xattrNames(list func([]byte) (int, error)) []string {
	var small [512]byte
	buf := small[:]
	n, err := list(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_LIST_MAX of Linux
		n, err = list(buf)
	}
	if err != nil || n <= 0 {
		return nil
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, metadataXattr) && len(name) > len(metadataXattr) && len(names) < 128 {
			names = append(names, strings.ToValidUTF8(name, "\uFFFD"))
		}
	}
	return names
}
