package guestclient

import (
	"encoding/binary"
	"io"
	"net/http"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// maxFrame bounds one message of a stream; output comes in pieces of at most 32 KiB.
const maxFrame = 1 << 20

// frames reads a stream of Connect envelopes and ends it where one claims to be larger than any can be. The library would
// otherwise read all of what was claimed, up to 4 GiB, in order to throw it away.
type frames struct {
	io.ReadCloser
	head []byte // of the envelope that is being read; at most 5 bytes
	left int64  // of its message
}

// capped ends an answer that is larger than any can be, for the same reason: the library reads the rest of it to the end.
type capped struct {
	io.ReadCloser
	left int64
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, tartarus.Errorf(tartarus.TooLarge, "the guest's answer is over %d bytes", maxAnswer)
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// guard bounds what the answer to a call may hold. Files have no bound.
func guard(req *http.Request, res *http.Response) {
	switch {
	case strings.HasPrefix(res.Header.Get("Content-Type"), "application/connect+"):
		res.Body = &frames{ReadCloser: res.Body}
	case req.Header.Get("Connect-Protocol-Version") != "":
		res.Body = &capped{ReadCloser: res.Body, left: maxAnswer + 2} // one byte more than the library's own limit needs to see
	}
}

func (f *frames) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	for data := p[:n]; len(data) > 0; {
		if f.left > 0 {
			skip := min(f.left, int64(len(data)))
			f.left -= skip
			data = data[skip:]
			continue
		}
		take := min(5-len(f.head), len(data))
		f.head = append(f.head, data[:take]...)
		data = data[take:]
		if len(f.head) < 5 {
			break
		}
		f.left = int64(binary.BigEndian.Uint32(f.head[1:]))
		f.head = f.head[:0]
		if f.left > maxFrame {
			return 0, tartarus.Errorf(tartarus.TooLarge, "the guest's stream has a message of %d bytes, over %d", f.left, maxFrame)
		}
	}
	return n, err
}
