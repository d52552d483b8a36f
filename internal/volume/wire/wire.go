// Package wire is how a guest that has a volume mounted asks its node for files: frames with a length over one connection, each
// request complete in itself, so that what was not answered can be asked again over another connection, or of
// another node. Whatever the bytes, decoding neither panics nor takes more memory than the frame's bounds.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Protocol is what GET /volume upgrades a connection to; the guest asks and the host answers.
const Protocol = "tartarus-volume"

// Op says what is asked for.
type Op uint8

// The operations. A path is relative to the volume's root.
const (
	Stat Op = iota + 1
	Set
	List
	Read
	Write
	Create
	Mkdir
	Symlink
	Readlink
	Link
	Unlink
	Rmdir
	Rename
	Statfs
	Sync
)

// Valid says which fields of a Set count.
const (
	ValidMode = 1 << iota
	ValidUID
	ValidGID
	ValidSize
	ValidAtime
	ValidMtime
)

// Bounds of a frame.
const (
	// MaxData is the most that is read or written at once: what the kernel sends in one piece.
	MaxData = 128 << 10
	// MaxPath is the longest path.
	MaxPath = 4096
	// MaxEntries is the most that a folder may hold to be listed.
	MaxEntries = 16 << 10

	requestHead = 8 + 1 + 1 + 2 + 4 + 4 + 4 + 4 + 8 + 8 + 8 + 8 + 2 + 2
	maxRequest  = requestHead + 2*MaxPath + MaxData
	attrSize    = 8 + 8 + 4 + 4 + 4 + 4 + 3*8
	replyHead   = 8 + 4 + 1 + attrSize
	maxReply    = replyHead + MaxEntries*(entryHead+255)
	entryHead   = 8 + 4 + 1
)

// Request is one question. Which fields count depends on Op.
type Request struct {
	ID           uint64
	Op           Op
	Again        bool // it may have been carried out already
	Keep         bool // a rename does not replace
	Valid        uint32
	Mode         uint32
	UID, GID     uint32
	Offset, Size int64
	Atime, Mtime int64 // nanoseconds since 1970
	Path, Other  string
	Data         []byte
}

// Attr describes an entry. Times are nanoseconds since 1970.
type Attr struct {
	Inode               uint64
	Size                int64
	Mode                uint32
	Links, UID, GID     uint32
	Atime, Mtime, Ctime int64
}

// Reply is the answer to the request with its ID.
type Reply struct {
	ID    uint64
	Errno int32 // of Linux; 0 is success
	Attr  *Attr
	Data  []byte // of a read, a link's target, or a listing
}

// Entry is a name in a listing.
type Entry struct {
	Inode uint64
	Mode  uint32
	Name  string
}

var order = binary.LittleEndian

var errFrame = errors.New("the frame is not what it should be")

// Append encodes r behind b, with its length before it.
func (r *Request) Append(b []byte) []byte {
	b = order.AppendUint32(b, uint32(requestHead+len(r.Path)+len(r.Other)+len(r.Data)))
	b = order.AppendUint64(b, r.ID)
	b = append(b, byte(r.Op), flag(r.Again)|flag(r.Keep)<<1, 0, 0)
	for _, v := range []uint32{r.Valid, r.Mode, r.UID, r.GID} {
		b = order.AppendUint32(b, v)
	}
	for _, v := range []int64{r.Offset, r.Size, r.Atime, r.Mtime} {
		b = order.AppendUint64(b, uint64(v))
	}
	b = order.AppendUint16(b, uint16(len(r.Path)))
	b = order.AppendUint16(b, uint16(len(r.Other)))
	b = append(append(b, r.Path...), r.Other...)
	return append(b, r.Data...)
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// ReadRequest reads one request.
func ReadRequest(from io.Reader) (*Request, error) {
	b, err := frame(from, requestHead, maxRequest)
	if err != nil {
		return nil, err
	}
	r := &Request{
		ID: order.Uint64(b), Op: Op(b[8]), Again: b[9]&1 != 0, Keep: b[9]&2 != 0,
		Valid: order.Uint32(b[12:]), Mode: order.Uint32(b[16:]), UID: order.Uint32(b[20:]), GID: order.Uint32(b[24:]),
		Offset: int64(order.Uint64(b[28:])), Size: int64(order.Uint64(b[36:])), Atime: int64(order.Uint64(b[44:])), Mtime: int64(order.Uint64(b[52:])),
	}
	path, other := int(order.Uint16(b[60:])), int(order.Uint16(b[62:]))
	rest := b[requestHead:]
	if path > MaxPath || other > MaxPath || path+other > len(rest) || len(rest)-path-other > MaxData || b[9]&^3 != 0 || b[10]|b[11] != 0 {
		return nil, errFrame
	}
	r.Path, r.Other, r.Data = string(rest[:path]), string(rest[path:path+other]), rest[path+other:]
	return r, nil
}

// Append encodes r behind b, with its length before it.
func (r *Reply) Append(b []byte) []byte {
	b = order.AppendUint32(b, uint32(replyHead+len(r.Data)))
	b = order.AppendUint64(b, r.ID)
	b = order.AppendUint32(b, uint32(r.Errno))
	b = append(b, flag(r.Attr != nil))
	a := r.Attr
	if a == nil {
		a = &Attr{}
	}
	b = order.AppendUint64(b, a.Inode)
	b = order.AppendUint64(b, uint64(a.Size))
	for _, v := range []uint32{a.Mode, a.Links, a.UID, a.GID} {
		b = order.AppendUint32(b, v)
	}
	for _, v := range []int64{a.Atime, a.Mtime, a.Ctime} {
		b = order.AppendUint64(b, uint64(v))
	}
	return append(b, r.Data...)
}

// ReadReply reads one reply.
func ReadReply(from io.Reader) (*Reply, error) {
	b, err := frame(from, replyHead, maxReply)
	if err != nil {
		return nil, err
	}
	r := &Reply{ID: order.Uint64(b), Errno: int32(order.Uint32(b[8:])), Data: b[replyHead:]}
	if b[12] != 0 {
		b = b[13:]
		r.Attr = &Attr{
			Inode: order.Uint64(b), Size: int64(order.Uint64(b[8:])),
			Mode: order.Uint32(b[16:]), Links: order.Uint32(b[20:]), UID: order.Uint32(b[24:]), GID: order.Uint32(b[28:]),
			Atime: int64(order.Uint64(b[32:])), Mtime: int64(order.Uint64(b[40:])), Ctime: int64(order.Uint64(b[48:])),
		}
	}
	return r, nil
}

// frame reads what a length announces.
func frame(from io.Reader, least, most int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return nil, err
	}
	n := order.Uint32(head[:])
	if n < uint32(least) || n > uint32(most) {
		return nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(from, b); err != nil {
		return nil, err
	}
	return b, nil
}

// AppendEntry encodes one entry of a listing behind b.
func AppendEntry(b []byte, e Entry) []byte {
	b = order.AppendUint64(b, e.Inode)
	b = order.AppendUint32(b, e.Mode)
	b = append(b, byte(len(e.Name)))
	return append(b, e.Name...)
}

// Entries decodes a listing.
func Entries(b []byte) ([]Entry, error) {
	var out []Entry
	for len(b) > 0 {
		if len(b) < entryHead || len(b) < entryHead+int(b[12]) {
			return nil, errFrame
		}
		n := int(b[12])
		out = append(out, Entry{order.Uint64(b), order.Uint32(b[8:]), string(b[entryHead : entryHead+n])})
		b = b[entryHead+n:]
	}
	return out, nil
}
