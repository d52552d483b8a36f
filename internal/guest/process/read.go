package process

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// The largest pieces of output, which SDKs know.
const (
	pipeChunk     = 32 << 10
	terminalChunk = 16 << 10
)

// lastWords is the most that is still read after a process died: the largest pipe an ordinary user can
// make (fs.pipe-max-size, 1 MiB). What it wrote itself fits; a surviving child that goes on writing does
// not keep the end from being told.
const lastWords = 1 << 20

// hangup is how long the kernel gets to bring the last output of a terminal through its line discipline.
const hangup = 100 * time.Millisecond

// buffers are shared by all readers, so that a process that prints nothing holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, pipeChunk); return &b }}

// errNothing tells that a read without waiting found nothing.
var errNothing = errors.New("nothing to read")

// next reads one piece of output and gives it to use. It returns errNothing instead of waiting unless wait is set.
func next(file *os.File, size int, wait bool, use func([]byte)) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var (
		buf *[]byte
		n   int
	)
	polled := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		for {
			n, err = unix.Read(int(fd), (*buf)[:size])
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if !errors.Is(err, unix.EAGAIN) {
			return true
		}
		buffers.Put(buf)
		buf = nil
		return !wait
	})
	if buf == nil {
		if polled != nil {
			return polled
		}
		return errNothing
	}
	defer buffers.Put(buf)
	switch {
	case polled != nil:
		return polled
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	}
	use((*buf)[:n])
	return nil
}

// read hands one stream of p to its clients until the stream ends or p is dead and the pipe is empty. The file is closed once nobody
// waits for that any more.
func (m *Manager) read(p *Process, o spawn.Output) {
	lines := m.lines(p.PID, o.Stream)
	if m.readAll(p, o, lines) {
		lines.flush()
		p.readers.Done()
		o.File.Close()
		return
	}
	p.readers.Done()
	m.discard(o.File, lines)
}

// readAll reads until the stream ends, and reports whether it has: a child of the dead process may still write to it.
func (m *Manager) readAll(p *Process, o spawn.Output, lines *lines) bool {
	size := pipeChunk
	if o.Stream == spawn.PTY {
		size = terminalChunk
	}
	use := func(data []byte) {
		if p.attached() {
			p.publish(Chunk{o.Stream, append([]byte(nil), data...)})
		}
		lines.write(data)
	}
	var err error
	for err == nil {
		err = next(o.File, size, true, use)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	if o.Stream == spawn.PTY {
		drain(o.File, size, use, hangup)
		return true
	}
	return !errors.Is(drain(o.File, size, use, 0), errNothing) || !m.adopt(o.File)
}

// drain reads what is left after the process died, and waits for patience where there is nothing at once. It
// returns why it stopped: errNothing when the other end is still open.
func drain(file *os.File, size int, use func([]byte), patience time.Duration) error {
	for total := 0; total < lastWords; {
		// Anew for each piece: a slow client may have taken longer than that over the one before.
		deadline := time.Time{}
		if patience > 0 {
			deadline = time.Now().Add(patience)
		}
		if err := file.SetReadDeadline(deadline); err != nil {
			return err
		}
		err := next(file, size, patience > 0, func(data []byte) {
			total += len(data)
			use(data)
		})
		if err != nil {
			return err
		}
	}
	return errNothing
}

// discard keeps reading a pipe that a child of the dead process still writes to, so that the child neither
// blocks nor dies of a broken pipe. Its lines still go to the journal.
func (m *Manager) discard(file *os.File, lines *lines) {
	for next(file, pipeChunk, true, lines.write) == nil {
	}
	lines.flush()
	m.release(file)
}

// adopt notes a pipe that outlives its process. It says no when the Manager is closed.
func (m *Manager) adopt(file *os.File) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.orphans[file] = struct{}{}
	return true
}

func (m *Manager) release(file *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.orphans, file)
	file.Close()
}
