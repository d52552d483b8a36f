package mounted

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// The kernel's side of the conversation, as linux/fuse.h has it.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opFsyncdir    = 30
	opCreate      = 35
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opRename2     = 45

	major = 7
	minor = 31 // what we say we speak: 4.20 and later

	inHead  = 40
	outHead = 16

	flagAsyncRead = 1 << 0
	flagBigWrites = 1 << 5
	flagParallel  = 1 << 18 // lookups and listings in one folder at the same time
	flagMaxPages  = 1 << 22
	pageSize      = 4096

	renameNoReplace = 1

	setMode     = 1 << 0
	setUID      = 1 << 1
	setGID      = 1 << 2
	setSize     = 1 << 3
	setAtime    = 1 << 4
	setMtime    = 1 << 5
	setAtimeNow = 1 << 7
	setMtimeNow = 1 << 8
)

var order = binary.NativeEndian

// server answers the kernel for one mounted volume.
type server struct {
	fd    int // /dev/fuse
	link  *link
	nodes *nodes

	mu      sync.Mutex
	cancel  map[uint64]context.CancelFunc // of requests under way, by the kernel's number
	folders map[uint64]*folder            // open folders
	nextFh  uint64
}

// folder is an open folder: what was in it when it was first read.
type folder struct {
	mu      sync.Mutex
	read    bool
	entries []wire.Entry
}

func newServer(fd int, l *link) *server {
	return &server{fd: fd, link: l, nodes: newNodes(), cancel: map[uint64]context.CancelFunc{}, folders: map[uint64]*folder{}}
}

// request is what the kernel wants.
type request struct {
	op       uint32
	unique   uint64
	node     uint64
	uid, gid uint32
	body     []byte
}

// run answers until the file system is unmounted.
func (s *server) run(ctx context.Context) error {
	buf := make([]byte, inHead+pageSize+wire.MaxData)
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT): // interrupted before it was read
			continue
		case errors.Is(err, unix.ENODEV):
			return nil // unmounted
		case err != nil:
			return fmt.Errorf("read requests: %w", err)
		case n < inHead:
			return fmt.Errorf("read requests: %d bytes are none", n)
		}
		r := &request{
			op: order.Uint32(buf[4:]), unique: order.Uint64(buf[8:]), node: order.Uint64(buf[16:]), uid: order.Uint32(buf[24:]), gid: order.Uint32(buf[28:]),
			body: bytes.Clone(buf[inHead:n]),
		}
		switch r.op {
		case opDestroy:
			s.reply(r, nil, nil)
			return nil
		case opForget, opBatchForget:
			s.forget(r) // has no answer
		case opInterrupt:
			s.interrupt(r)
		default:
			go s.serve(ctx, r)
		}
	}
}

// serve answers one request.
func (s *server) serve(ctx context.Context, r *request) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.cancel[r.unique] = cancel
	s.mu.Unlock()
	out, err := s.answer(ctx, r)
	s.mu.Lock()
	delete(s.cancel, r.unique)
	s.mu.Unlock()
	s.reply(r, out, err)
}

func (s *server) interrupt(r *request) {
	if len(r.body) < 8 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.cancel[order.Uint64(r.body)]; cancel != nil {
		cancel()
	}
}

// reply sends an answer. The kernel refuses it when nobody waits any more.
func (s *server) reply(r *request, body []byte, err error) {
	var number unix.Errno
	if err != nil {
		body = nil
		if !errors.As(err, &number) {
			number = unix.EIO
		}
	}
	out := make([]byte, outHead, outHead+len(body))
	order.PutUint32(out, uint32(outHead+len(body)))
	order.PutUint32(out[4:], uint32(-int32(number)))
	order.PutUint64(out[8:], r.unique)
	for {
		if _, err := unix.Write(s.fd, append(out, body...)); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (s *server) forget(r *request) {
	if r.op == opForget {
		if len(r.body) >= 8 {
			s.nodes.forget(r.node, order.Uint64(r.body))
		}
		return
	}
	if len(r.body) < 8 {
		return
	}
	n, rest := order.Uint32(r.body), r.body[8:]
	for ; n > 0 && len(rest) >= 16; n, rest = n-1, rest[16:] {
		s.nodes.forget(order.Uint64(rest), order.Uint64(rest[8:]))
	}
}

// shortest is how long the fixed part of a request's body is.
var shortest = map[uint32]int{
	opSetattr: 88, opMknod: 16, opMkdir: 8, opRename: 8, opLink: 8, opRead: 40, opWrite: 40, opRelease: 24, opInit: 16,
	opReaddir: 40, opReleasedir: 24, opCreate: 16, opRename2: 16,
}

// answer carries out one request.
func (s *server) answer(ctx context.Context, r *request) ([]byte, error) {
	if len(r.body) < shortest[r.op] {
		return nil, unix.EINVAL
	}
	switch r.op {
	case opInit:
		return s.init(r), nil
	case opLookup:
		return s.lookup(ctx, r)
	case opGetattr:
		return s.getattr(ctx, r)
	case opSetattr:
		return s.setattr(ctx, r)
	case opMknod, opMkdir, opSymlink, opCreate:
		return s.create(ctx, r)
	case opLink:
		return s.hardLink(ctx, r)
	case opUnlink, opRmdir:
		return nil, s.remove(ctx, r)
	case opRename, opRename2:
		return nil, s.rename(ctx, r)
	case opReadlink:
		reply, err := s.about(ctx, r.node, &wire.Request{Op: wire.Readlink})
		if err != nil {
			return nil, err
		}
		return reply.Data, nil
	case opOpen:
		return make([]byte, 16), nil // without a handle: everything goes by path
	case opRead:
		return s.read(ctx, r)
	case opWrite:
		return s.write(ctx, r)
	case opStatfs:
		return s.statfs(ctx, r)
	case opFsync, opFsyncdir:
		_, err := s.about(ctx, r.node, &wire.Request{Op: wire.Sync})
		return nil, err
	case opFlush, opRelease:
		return nil, nil // what was written is with the node already
	case opOpendir:
		return s.openFolder(), nil
	case opReaddir:
		return s.readFolder(ctx, r)
	case opReleasedir:
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.folders, order.Uint64(r.body))
		return nil, nil
	}
	return nil, unix.ENOSYS
}

func (s *server) init(r *request) []byte {
	theirs := order.Uint32(r.body[12:])
	out := make([]byte, 64)
	order.PutUint32(out, major)
	order.PutUint32(out[4:], minor)
	order.PutUint32(out[8:], order.Uint32(r.body[8:]))
	order.PutUint32(out[12:], theirs&(flagAsyncRead|flagBigWrites|flagParallel|flagMaxPages))
	order.PutUint16(out[16:], 16) // requests in the background
	order.PutUint16(out[18:], 12)
	order.PutUint32(out[20:], wire.MaxData)
	order.PutUint32(out[24:], 1) // nanoseconds
	order.PutUint16(out[28:], wire.MaxData/pageSize)
	return out
}

// about asks the node about a file that the kernel knows.
func (s *server) about(ctx context.Context, node uint64, q *wire.Request) (*wire.Reply, error) {
	p, err := s.nodes.path(node)
	if err != nil {
		return nil, err
	}
	q.Path = p
	return s.link.ask(ctx, q)
}
