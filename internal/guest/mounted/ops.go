package mounted

import (
	"bytes"
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// Names and attributes are good for no time at all: other sandboxes and the API change the same files.

// entryOut is fuse_entry_out.
func entryOut(id uint64, a *wire.Attr) []byte {
	out := make([]byte, 40, 128)
	order.PutUint64(out, id)
	return append(out, attr(a)...)
}

// attrOut is fuse_attr_out.
func attrOut(a *wire.Attr) []byte { return append(make([]byte, 16, 104), attr(a)...) }

// attr is fuse_attr.
func attr(a *wire.Attr) []byte {
	out := make([]byte, 88)
	order.PutUint64(out, a.Inode)
	order.PutUint64(out[8:], uint64(a.Size))
	order.PutUint64(out[16:], uint64(a.Size+511)/512)
	for i, ns := range []int64{a.Atime, a.Mtime, a.Ctime} {
		t := time.Unix(0, ns)
		order.PutUint64(out[24+8*i:], uint64(t.Unix()))
		order.PutUint32(out[48+4*i:], uint32(t.Nanosecond()))
	}
	order.PutUint32(out[60:], a.Mode)
	order.PutUint32(out[64:], a.Links)
	order.PutUint32(out[68:], a.UID)
	order.PutUint32(out[72:], a.GID)
	order.PutUint32(out[80:], pageSize)
	return out
}

// cut takes a name that ends with a zero off a body.
func cut(b []byte) (name string, rest []byte, err error) {
	text, rest, ok := bytes.Cut(b, []byte{0})
	if !ok || len(text) == 0 {
		return "", nil, unix.EINVAL
	}
	if len(text) > 255 {
		return "", nil, unix.ENAMETOOLONG
	}
	return string(text), rest, nil
}

// entry counts a name in and describes it.
func (s *server) entry(parent uint64, name string, a *wire.Attr) ([]byte, error) {
	if a == nil {
		return nil, unix.EIO
	}
	id, err := s.nodes.found(parent, name)
	if err != nil {
		return nil, err
	}
	return entryOut(id, a), nil
}

func (s *server) lookup(ctx context.Context, r *request) ([]byte, error) {
	name, _, err := cut(r.body)
	if err != nil {
		return nil, err
	}
	p, err := s.nodes.child(r.node, name)
	if err != nil {
		return nil, err
	}
	reply, err := s.link.ask(ctx, &wire.Request{Op: wire.Stat, Path: p})
	if err != nil {
		return nil, err
	}
	return s.entry(r.node, name, reply.Attr)
}

func (s *server) getattr(ctx context.Context, r *request) ([]byte, error) {
	reply, err := s.about(ctx, r.node, &wire.Request{Op: wire.Stat})
	if err != nil {
		return nil, err
	}
	if reply.Attr == nil {
		return nil, unix.EIO
	}
	return attrOut(reply.Attr), nil
}

func (s *server) setattr(ctx context.Context, r *request) ([]byte, error) {
	b, valid := r.body, order.Uint32(r.body)
	now := time.Now().UnixNano()
	q := &wire.Request{
		Op: wire.Set, Size: int64(order.Uint64(b[16:])), Mode: order.Uint32(b[68:]), UID: order.Uint32(b[76:]), GID: order.Uint32(b[80:]),
		Atime: time.Unix(int64(order.Uint64(b[32:])), int64(order.Uint32(b[56:]))).UnixNano(),
		Mtime: time.Unix(int64(order.Uint64(b[40:])), int64(order.Uint32(b[60:]))).UnixNano(),
	}
	for _, f := range []struct{ theirs, ours uint32 }{
		{setMode, wire.ValidMode}, {setUID, wire.ValidUID}, {setGID, wire.ValidGID}, {setSize, wire.ValidSize}, {setAtime, wire.ValidAtime}, {setMtime, wire.ValidMtime},
	} {
		if valid&f.theirs != 0 {
			q.Valid |= f.ours
		}
	}
	if valid&setAtimeNow != 0 {
		q.Atime = now
	}
	if valid&setMtimeNow != 0 {
		q.Mtime = now
	}
	reply, err := s.about(ctx, r.node, q)
	if err != nil {
		return nil, err
	}
	if reply.Attr == nil {
		return nil, unix.EIO
	}
	return attrOut(reply.Attr), nil
}

// create makes a file, folder or symbolic link.
func (s *server) create(ctx context.Context, r *request) ([]byte, error) {
	q := &wire.Request{UID: r.uid, GID: r.gid}
	body := r.body
	switch r.op {
	case opMkdir:
		q.Op, q.Mode, body = wire.Mkdir, order.Uint32(body), body[8:]
	case opMknod:
		q.Op, q.Mode, body = wire.Create, order.Uint32(body), body[16:]
		if t := q.Mode & unix.S_IFMT; t != 0 && t != unix.S_IFREG {
			return nil, unix.EPERM // no devices, pipes or sockets
		}
	case opCreate:
		q.Op, q.Mode, body = wire.Create, order.Uint32(body[4:]), body[16:]
	case opSymlink:
		q.Op = wire.Symlink
	}
	name, rest, err := cut(body)
	if err != nil {
		return nil, err
	}
	if r.op == opSymlink {
		target, _, ok := bytes.Cut(rest, []byte{0})
		if !ok || len(target) > wire.MaxPath-1 {
			return nil, unix.EINVAL
		}
		q.Other = string(target)
	}
	if q.Path, err = s.nodes.child(r.node, name); err != nil {
		return nil, err
	}
	reply, err := s.link.ask(ctx, q)
	if err == unix.EEXIST && r.op == opCreate && order.Uint32(r.body)&unix.O_EXCL == 0 {
		// Somebody else was first, and this one does not mind.
		reply, err = s.link.ask(ctx, &wire.Request{Op: wire.Stat, Path: q.Path})
	}
	if err != nil {
		return nil, err
	}
	out, err := s.entry(r.node, name, reply.Attr)
	if err == nil && r.op == opCreate {
		out = append(out, make([]byte, 16)...) // fuse_open_out
	}
	return out, err
}

func (s *server) hardLink(ctx context.Context, r *request) ([]byte, error) {
	name, _, err := cut(r.body[8:])
	if err != nil {
		return nil, err
	}
	to, err := s.nodes.child(r.node, name)
	if err != nil {
		return nil, err
	}
	reply, err := s.about(ctx, order.Uint64(r.body), &wire.Request{Op: wire.Link, Other: to})
	if err != nil {
		return nil, err
	}
	return s.entry(r.node, name, reply.Attr)
}

func (s *server) remove(ctx context.Context, r *request) error {
	name, _, err := cut(r.body)
	if err != nil {
		return err
	}
	p, err := s.nodes.child(r.node, name)
	if err != nil {
		return err
	}
	op := wire.Unlink
	if r.op == opRmdir {
		op = wire.Rmdir
	}
	if _, err = s.link.ask(ctx, &wire.Request{Op: op, Path: p}); err == nil {
		s.nodes.gone(r.node, name)
	}
	return err
}

func (s *server) rename(ctx context.Context, r *request) error {
	body, flags := r.body[8:], uint32(0)
	if r.op == opRename2 {
		flags, body = order.Uint32(body), body[8:]
	}
	if flags&^renameNoReplace != 0 {
		return unix.EINVAL
	}
	name, rest, err := cut(body)
	if err != nil {
		return err
	}
	newName, _, err := cut(rest)
	if err != nil {
		return err
	}
	folder := order.Uint64(r.body)
	q := &wire.Request{Op: wire.Rename, Keep: flags&renameNoReplace != 0}
	if q.Path, err = s.nodes.child(r.node, name); err == nil {
		q.Other, err = s.nodes.child(folder, newName)
	}
	if err != nil {
		return err
	}
	if _, err = s.link.ask(ctx, q); err == nil {
		s.nodes.moved(r.node, name, folder, newName)
	}
	return err
}

func (s *server) read(ctx context.Context, r *request) ([]byte, error) {
	size := min(order.Uint32(r.body[16:]), wire.MaxData)
	reply, err := s.about(ctx, r.node, &wire.Request{Op: wire.Read, Offset: int64(order.Uint64(r.body[8:])), Size: int64(size)})
	if err != nil {
		return nil, err
	}
	return reply.Data[:min(len(reply.Data), int(size))], nil
}

func (s *server) write(ctx context.Context, r *request) ([]byte, error) {
	data := r.body[40:]
	size := order.Uint32(r.body[16:])
	if int(size) > len(data) || size > wire.MaxData {
		return nil, unix.EINVAL
	}
	_, err := s.about(ctx, r.node, &wire.Request{Op: wire.Write, Offset: int64(order.Uint64(r.body[8:])), Data: data[:size]})
	if err != nil {
		return nil, err
	}
	out := make([]byte, 8)
	order.PutUint32(out, size)
	return out, nil
}

func (s *server) statfs(ctx context.Context, r *request) ([]byte, error) {
	reply, err := s.about(ctx, r.node, &wire.Request{Op: wire.Statfs})
	if err != nil {
		return nil, err
	}
	if reply.Attr == nil {
		return nil, unix.EIO
	}
	free := reply.Attr.Inode / pageSize
	out := make([]byte, 80)
	order.PutUint64(out, uint64(reply.Attr.Size)/pageSize)
	order.PutUint64(out[8:], free)
	order.PutUint64(out[16:], free)
	order.PutUint64(out[24:], uint64(reply.Attr.Size)/pageSize) // an entry takes a page
	order.PutUint64(out[32:], free)
	order.PutUint32(out[40:], pageSize)
	order.PutUint32(out[44:], 255)
	order.PutUint32(out[48:], pageSize)
	return out, nil
}

func (s *server) openFolder() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextFh++
	s.folders[s.nextFh] = &folder{}
	out := make([]byte, 16)
	order.PutUint64(out, s.nextFh)
	return out
}

// readFolder gives a piece of a listing, which is asked for once and anew when it is read from the start again.
func (s *server) readFolder(ctx context.Context, r *request) ([]byte, error) {
	s.mu.Lock()
	f := s.folders[order.Uint64(r.body)]
	s.mu.Unlock()
	if f == nil {
		return nil, unix.EBADF
	}
	offset, size := order.Uint64(r.body[8:]), int(order.Uint32(r.body[16:]))
	f.mu.Lock()
	defer f.mu.Unlock()
	if offset == 0 || !f.read {
		reply, err := s.about(ctx, r.node, &wire.Request{Op: wire.List})
		if err != nil {
			return nil, err
		}
		entries, err := wire.Entries(reply.Data)
		if err != nil {
			return nil, unix.EIO
		}
		f.read, f.entries = true, append([]wire.Entry{{Inode: 1, Mode: unix.S_IFDIR, Name: "."}, {Inode: 1, Mode: unix.S_IFDIR, Name: ".."}}, entries...)
	}
	out := []byte{}
	for i := offset; i < uint64(len(f.entries)); i++ {
		e := f.entries[i]
		padded := (24 + len(e.Name) + 7) &^ 7
		if len(out)+padded > size {
			break
		}
		d := make([]byte, padded)
		order.PutUint64(d, max(e.Inode, 1))
		order.PutUint64(d[8:], i+1)
		order.PutUint32(d[16:], uint32(len(e.Name)))
		order.PutUint32(d[20:], e.Mode&unix.S_IFMT>>12)
		copy(d[24:], e.Name)
		out = append(out, d...)
	}
	return out, nil
}
