package edge

import (
	"io"
	"net/http"
	"net/http/httputil"
	"sync"
)

// Buffers for copying bodies. A large download is a third faster through a large buffer; an event stream, which may hold its buffer for
// hours, gets a small one.
const (
	smallBuffer = 32 << 10
	largeBuffer = 256 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

func takeBuffer(large bool) []byte {
	if large {
		return largeBuffers.Get().(*[largeBuffer]byte)[:]
	}
	return smallBuffers.Get().(*[smallBuffer]byte)[:]
}

func giveBuffer(b []byte) {
	if len(b) == largeBuffer {
		largeBuffers.Put((*[largeBuffer]byte)(b))
		return
	}
	smallBuffers.Put((*[smallBuffer]byte)(b))
}

// passage is one request on its way. It chooses the buffer once the answer says how long it will be.
type passage struct {
	proxy httputil.ReverseProxy
	large bool
}

func (p *passage) measure(res *http.Response) error {
	p.large = res.ContentLength >= largeBuffer
	return nil
}

// Get and Put are those of httputil.BufferPool.
func (p *passage) Get() []byte  { return takeBuffer(p.large) }
func (p *passage) Put(b []byte) { giveBuffer(b) }

// ReadFrom copies an upload to the guest.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	known, ok := r.(*io.LimitedReader)
	b := takeBuffer(ok && known.N >= largeBuffer)
	defer giveBuffer(b)
	return io.CopyBuffer(writerOnly{c.Conn}, r, b)
}

// writerOnly hides that a connection can read by itself, with a buffer of its own.
type writerOnly struct{ io.Writer }
