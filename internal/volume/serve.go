package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// atOnce is how many requests of one mount are worked on at the same time. With a listing of a full folder each they
// hold 35 MB.
const atOnce = 8

// replyTime is how long a guest may take to read an answer.
const replyTime = time.Minute

// Serve answers what a guest asks over conn, until it or ctx ends. Nothing that comes is trusted: a frame that is none ends the
// connection, and everything else gets at worst an error number.
func (t *Tree) Serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var (
		work    sync.WaitGroup
		writing sync.Mutex
		places  = make(chan struct{}, atOnce)
		in      = bufio.NewReaderSize(conn, 64<<10)
	)
	defer work.Wait()
	defer conn.Close()
	for {
		r, err := wire.ReadRequest(in)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve volume: %w", err)
		}
		places <- struct{}{}
		work.Go(func() {
			defer func() { <-places }()
			b := t.answer(r).Append(nil)
			writing.Lock()
			defer writing.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(replyTime))
			if _, err := conn.Write(b); err != nil {
				conn.Close()
			}
		})
	}
}

// answer carries out one request.
func (t *Tree) answer(r *wire.Request) *wire.Reply {
	out := &wire.Reply{ID: r.ID}
	err := t.carryOut(r, out)
	if err != nil && r.Again {
		err = t.forgive(r, err)
	}
	if err == nil && givesAttr[r.Op] {
		var a Attr
		at := r.Path
		if r.Op == wire.Link {
			at = r.Other
		}
		if a, err = t.Stat(at); err == nil {
			out.Attr = attrWire(a)
		}
	}
	if err != nil {
		return &wire.Reply{ID: r.ID, Errno: errno(err)}
	}
	return out
}

// givesAttr are the operations whose answer describes the entry.
var givesAttr = map[wire.Op]bool{
	wire.Stat: true, wire.Set: true, wire.Create: true, wire.Mkdir: true, wire.Symlink: true, wire.Link: true,
}

func (t *Tree) carryOut(r *wire.Request, out *wire.Reply) (err error) {
	owner := Owner{UID: r.UID, GID: r.GID, Mode: r.Mode}
	switch r.Op {
	case wire.Stat:
	case wire.Set:
		return t.set(r)
	case wire.List:
		out.Data, err = t.listing(r.Path)
	case wire.Read:
		if r.Size < 0 || r.Size > wire.MaxData {
			return unix.EINVAL
		}
		b := make([]byte, r.Size)
		n, err := t.ReadAt(r.Path, b, r.Offset)
		out.Data = b[:n]
		return err
	case wire.Write:
		return t.WriteAt(r.Path, r.Data, r.Offset)
	case wire.Create:
		return t.Create(r.Path, owner)
	case wire.Mkdir:
		return t.Mkdir(r.Path, owner)
	case wire.Symlink:
		return t.Symlink(r.Other, r.Path, owner)
	case wire.Readlink:
		var target string
		target, err = t.Readlink(r.Path)
		out.Data = []byte(target)
	case wire.Link:
		return t.Link(r.Path, r.Other)
	case wire.Unlink:
		return t.Remove(r.Path, false)
	case wire.Rmdir:
		return t.Remove(r.Path, true)
	case wire.Rename:
		return t.Rename(r.Path, r.Other, r.Keep)
	case wire.Statfs:
		used, quota := t.Usage()
		out.Attr = &wire.Attr{Size: quota, Inode: uint64(max(0, quota-used))}
	case wire.Sync:
		return t.Sync(r.Path)
	default:
		return unix.ENOSYS
	}
	return err
}

// set carries out a change of attributes; of several, those before one that fails stay.
func (t *Tree) set(r *wire.Request) error {
	if r.Valid&wire.ValidSize != 0 {
		if err := t.Truncate(r.Path, r.Size); err != nil {
			return err
		}
	}
	var c Change
	if r.Valid&wire.ValidMode != 0 {
		c.Mode = &r.Mode
	}
	if r.Valid&wire.ValidUID != 0 {
		c.UID = &r.UID
	}
	if r.Valid&wire.ValidGID != 0 {
		c.GID = &r.GID
	}
	if r.Valid&wire.ValidAtime != 0 {
		at := time.Unix(0, r.Atime)
		c.Atime = &at
	}
	if r.Valid&wire.ValidMtime != 0 {
		at := time.Unix(0, r.Mtime)
		c.Mtime = &at
	}
	return t.Set(r.Path, c)
}

func (t *Tree) listing(p string) ([]byte, error) {
	entries, err := t.List(p, wire.MaxEntries)
	var b []byte
	for _, e := range entries {
		b = wire.AppendEntry(b, wire.Entry{Inode: e.Attr.Inode, Mode: e.Attr.Mode, Name: e.Name})
	}
	return b, err
}

// forgive takes the error of a request that was sent again for what it is when the first one was carried out and its answer lost: no error.
func (t *Tree) forgive(r *wire.Request, err error) error {
	there := func(p string) bool { _, err := t.Stat(p); return err == nil }
	done := false
	switch r.Op {
	case wire.Create, wire.Mkdir, wire.Symlink, wire.Link:
		done = errors.Is(err, unix.EEXIST)
	case wire.Unlink, wire.Rmdir:
		done = errors.Is(err, unix.ENOENT)
	case wire.Rename:
		done = !there(r.Path) && there(r.Other)
	}
	if done {
		return nil
	}
	return err
}

func attrWire(a Attr) *wire.Attr {
	return &wire.Attr{
		Inode: a.Inode, Size: a.Size, Mode: a.Mode, Links: a.Links, UID: a.UID, GID: a.GID,
		Atime: a.Atime.UnixNano(), Mtime: a.Mtime.UnixNano(), Ctime: a.Ctime.UnixNano(),
	}
}

// errno is the number that a guest's program is told.
func errno(err error) int32 {
	if n, ok := errors.AsType[unix.Errno](err); ok {
		return int32(n)
	}
	return int32(unix.EIO)
}
