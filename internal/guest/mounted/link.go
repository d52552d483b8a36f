package mounted

import (
	"bufio"
	"context"
	"net"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// link asks the node. Connections come and go, as when the sandbox is paused and resumed elsewhere; what was not answered on
// one is asked again on the next, and until there is one whoever asks waits.
type link struct {
	mu      sync.Mutex
	conn    net.Conn
	pending map[uint64]*call
	next    uint64

	writing sync.Mutex
}

type call struct {
	req  *wire.Request
	done chan *wire.Reply // capacity 1
}

func newLink() *link { return &link{pending: map[uint64]*call{}} }

// ask sends a request and waits for its answer, or until ctx ends.
func (l *link) ask(ctx context.Context, r *wire.Request) (*wire.Reply, error) {
	c := &call{req: r, done: make(chan *wire.Reply, 1)}
	l.mu.Lock()
	l.next++
	r.ID = l.next
	l.pending[r.ID] = c
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		l.send(conn, r)
	}
	defer func() {
		l.mu.Lock()
		delete(l.pending, r.ID)
		l.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		return nil, unix.EINTR
	case reply := <-c.done:
		if reply.Errno != 0 {
			return nil, unix.Errno(reply.Errno)
		}
		return reply, nil
	}
}

// send writes a request. When that fails, the next connection gets it.
func (l *link) send(conn net.Conn, r *wire.Request) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if _, err := conn.Write(r.Append(nil)); err != nil {
		conn.Close()
	}
}

// attach makes conn the one to ask over, and reads its answers until it ends.
func (l *link) attach(conn net.Conn) {
	l.mu.Lock()
	old := l.conn
	l.conn = conn
	var again []*wire.Request
	for _, c := range l.pending {
		r := *c.req
		r.Again = true
		again = append(again, &r)
	}
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
	go l.read(conn)
	slices.SortFunc(again, func(a, b *wire.Request) int { return int(int64(a.ID) - int64(b.ID)) })
	for _, r := range again {
		l.send(conn, r)
	}
}

func (l *link) read(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 64<<10)
	for {
		reply, err := wire.ReadReply(in)
		l.mu.Lock()
		if err != nil {
			if l.conn == conn {
				l.conn = nil
			}
			l.mu.Unlock()
			return
		}
		c := l.pending[reply.ID]
		l.mu.Unlock()
		if c != nil {
			select {
			case c.done <- reply:
			default: // answered twice
			}
		}
	}
}
