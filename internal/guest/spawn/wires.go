package spawn

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// Stream tells where output comes from.
type Stream uint8

// The streams.
const (
	Stdout Stream = iota
	Stderr
	PTY
)

func (s Stream) String() string { return [...]string{"stdout", "stderr", "pty"}[s] }

// Wires are the files that connect a program with the agent.
type Wires struct {
	Stdin    *os.File // where to write its input; nil for none
	Outputs  []Output
	Terminal *Terminal // nil when it is connected by pipes

	child  []uintptr  // standard input, output and error of the program
	theirs []int      // closed once the program has them; plain numbers, which the runtime need not watch
	ours   []*os.File // closed only when the start does not work
}

// Output is where one stream of a program can be read.
type Output struct {
	Stream Stream
	File   *os.File // non-blocking, so deadlines work
}

// Close gives up what is not going to be used.
func (w *Wires) Close() {
	w.abandon()
	w.handOver()
}

func (w *Wires) abandon() {
	for _, f := range w.ours {
		f.Close()
	}
}

func (w *Wires) handOver() {
	for _, fd := range w.theirs {
		_ = unix.Close(fd)
	}
}

// Pipes connects a program by pipes. Without stdin its input is empty.
func Pipes(withStdin bool) (w *Wires, err error) {
	w = &Wires{}
	defer func() {
		if err != nil {
			w.Close()
			w, err = nil, fault.OS(fmt.Errorf("connect by pipes: %w", err))
		}
	}()
	if withStdin {
		r, ours, err := pipe(false)
		if err != nil {
			return w, err
		}
		w.Stdin = ours
		w.theirs, w.ours = append(w.theirs, r), append(w.ours, ours)
	} else {
		null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return w, os.NewSyscallError("open", err)
		}
		w.theirs = append(w.theirs, null)
	}
	for _, stream := range []Stream{Stdout, Stderr} {
		theirs, ours, err := pipe(true)
		if err != nil {
			return w, err
		}
		w.theirs, w.ours = append(w.theirs, theirs), append(w.ours, ours)
		w.Outputs = append(w.Outputs, Output{stream, ours})
	}
	for _, fd := range w.theirs {
		w.child = append(w.child, uintptr(fd))
	}
	return w, nil
}

// TTY connects a program by a new pseudo-terminal of this size.
func TTY(u account.User, cols, rows uint32) (*Wires, error) {
	t, err := openTerminal(cols, rows, u.UID, u.GID)
	if err != nil {
		return nil, fault.OS(fmt.Errorf("connect by terminal: %w", err))
	}
	fd := t.slave.Fd()
	return &Wires{
		child: []uintptr{fd, fd, fd}, ours: []*os.File{t.master, t.slave},
		Stdin: t.master, Outputs: []Output{{PTY, t.master}}, Terminal: t,
	}, nil
}

// pipe makes a pipe of which only our end is non-blocking: the other one is an ordinary pipe to a
// process that expects one.
func pipe(weRead bool) (theirs int, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, nil, os.NewSyscallError("pipe2", err)
	}
	our, their := fds[1], fds[0]
	if weRead {
		our, their = fds[0], fds[1]
	}
	if _, err := unix.FcntlInt(uintptr(their), unix.F_SETFL, 0); err != nil {
		unix.Close(our)
		unix.Close(their)
		return 0, nil, os.NewSyscallError("fcntl", err)
	}
	return their, os.NewFile(uintptr(our), "|ours"), nil
}
