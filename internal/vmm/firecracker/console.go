package firecracker

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tailSize is how much of a stream is kept: a kernel's last words with their stack.
const tailSize = 16 << 10

// breath is what a reader waits between two reads. With the pipe's 64 KiB it bounds a guest that writes without end to about
// 13 MB/s of this process's time; the monitor drops what does not fit into the pipe.
const breath = 5 * time.Millisecond

// tail keeps the end of what comes through a named pipe that the monitor writes to. Nothing of it reaches a disk.
type tail struct {
	pipe *os.File
	done chan struct{}

	mu   sync.Mutex
	kept []byte
	end  int64         // bytes so far
	more chan struct{} // closed when something has come
}

// makePipe makes a named pipe that belongs to a user.
func makePipe(path string, uid int) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return os.Chown(path, uid, uid)
}

// openPipe opens a named pipe for both ways, so that it never ends and never blocks an open.
func openPipe(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// listen begins to read a named pipe until close.
func listen(path string) (*tail, error) {
	pipe, err := openPipe(path)
	if err != nil {
		return nil, err
	}
	t := &tail{pipe: pipe, done: make(chan struct{}), more: make(chan struct{})}
	go t.read()
	return t, nil
}

func (t *tail) read() {
	defer close(t.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := t.pipe.Read(buf)
		if n > 0 {
			t.add(buf[:n])
		}
		if err != nil {
			return
		}
		if n == len(buf) {
			time.Sleep(breath)
		}
	}
}

func (t *tail) add(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end += int64(len(b))
	t.kept = append(t.kept, b...)
	if len(t.kept) > tailSize {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-tailSize:]...)
	}
	close(t.more)
	t.more = make(chan struct{})
}

// End implements payload.Console.
func (t *tail) End() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end
}

// Next implements payload.Console.
func (t *tail) Next(ctx context.Context, at int64) ([]byte, int64, error) {
	for {
		t.mu.Lock()
		b, end, more := t.since(at), t.end, t.more
		t.mu.Unlock()
		if len(b) > 0 {
			return b, end, nil
		}
		select {
		case <-more:
		case <-t.done:
			if t.End() == end {
				return nil, at, errors.New("the machine has ended")
			}
		case <-ctx.Done():
			return nil, at, ctx.Err()
		}
	}
}

func (t *tail) since(at int64) []byte {
	from := max(0, int64(len(t.kept))-(t.end-at))
	if from >= int64(len(t.kept)) {
		return nil
	}
	return append([]byte(nil), t.kept[from:]...)
}

// text is what is kept.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

func (t *tail) close() {
	_ = t.pipe.Close()
	<-t.done
}

// Console is the serial port of a machine whose driver has Config.Console.
type Console struct {
	*tail
	in *os.File
}

// Write sends to the guest.
func (c *Console) Write(b []byte) (int, error) { return c.in.Write(b) }
