// Package erofs writes a stream of file system entries into one EROFS image.
// What it writes is readable by the Linux kernel and by gVisor alike, and the same entries in the
// same order always give the same bytes.
//
// The layout is the plainest that EROFS has: uncompressed, data of regular files in whole blocks and never
// packed into inodes (gVisor cannot map such files), extended inodes, true hard links, no feature that
// either reader would have to refuse. Data goes to the file as it arrives, the tree stays in memory and is
// written behind the data by Close:
//
//	block 0: superblock | file data | blocks of large directories | inodes with small directories and links
//
// Reading back, for Rewrite and for tests, is done by github.com/erofs/go-erofs.
package erofs

import (
	"io/fs"
	"time"
)

// The types of a Unix mode, in the bits 0o170000.
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFIFO    = 0o010000
)

// Entry is one file, directory, link or device.
type Entry struct {
	Path    string // slash separated, relative to the image's root; "" or "." is the root itself
	Mode    uint32 // type and permission bits of Unix, with setuid, setgid and sticky
	UID     uint32
	GID     uint32
	ModTime time.Time
	Size    int64             // bytes of a regular file
	Target  string            // of a symbolic link
	Major   uint32            // of a device
	Minor   uint32            // of a device
	Xattrs  map[string]string // full names: user.x, security.capability
}

// Type is the entry's type bits.
func (e *Entry) Type() uint32 { return e.Mode & TypeMask }

// UnixMode turns Go's mode into the mode of Unix.
func UnixMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for _, bit := range []struct {
		goBit fs.FileMode
		unix  uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&bit.goBit != 0 {
			out |= bit.unix
		}
	}
	switch {
	case m&fs.ModeDir != 0:
		return out | TypeDir
	case m&fs.ModeSymlink != 0:
		return out | TypeSymlink
	case m&fs.ModeCharDevice != 0:
		return out | TypeChar
	case m&fs.ModeDevice != 0:
		return out | TypeBlock
	case m&fs.ModeNamedPipe != 0:
		return out | TypeFIFO
	case m&fs.ModeSocket != 0:
		return out | TypeSocket
	}
	return out | TypeRegular
}

// Options bound and shape an image.
type Options struct {
	// Xattrs keeps extended attributes. gVisor refuses to open a file that has any, so images for every
	// runtime go without; Stats says how many were left out.
	Xattrs bool
	// MaxBytes bounds the data of all files together, replaced ones included. 0 means DefaultMaxBytes.
	MaxBytes int64
	// MaxEntries bounds names. 0 means DefaultMaxEntries.
	MaxEntries int
}

// DefaultMaxBytes is 32 GiB: the largest images in common use (machine learning) are around 20.
const DefaultMaxBytes = 32 << 30

// DefaultMaxEntries bounds the memory of the tree: about 400 bytes each, so 400 MB.
const DefaultMaxEntries = 1 << 20

// Stats says what an image holds.
type Stats struct {
	Size          int64 // of the image file
	Inodes        int
	DataBytes     int64 // of regular files, hard links counted once
	DroppedXattrs int   // attributes left out because Options.Xattrs was off
}
