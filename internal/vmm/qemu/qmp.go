package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The QEMU Machine Protocol (docs/interop/qmp-spec.rst): one JSON object a line, commands answered in order, events between them.

const (
	// answerTime bounds a command for callers whose context does not. Measured: below 1 ms; a QEMU that is being starved of
	// processor time by a full host takes longer.
	answerTime = 20 * time.Second

	// maxLine bounds what QEMU may say at once: 64 KiB of console in base64 are the most that is asked for.
	maxLine = 1 << 20

	// maxEvents bounds the events that nobody has looked at; the oldest go first.
	maxEvents = 64
)

// errClosed means that the other end has gone.
var errClosed = errors.New("the monitor's connection is closed")

// monitor is a connection to one QEMU. All methods may be called concurrently.
type monitor struct {
	conn   *net.UnixConn
	turn   chan struct{} // held by who waits for an answer
	answer chan reply    // capacity 1
	closed chan struct{}

	mu     sync.Mutex
	events []event
	heard  chan struct{} // capacity 1: there are events
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
}

// qmpError is what QEMU says when it refuses.
type qmpError struct {
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *qmpError) Error() string { return "QEMU: " + e.Description }

type event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// dialMonitor connects to the socket in the folder dir and agrees on capabilities. The path goes through a descriptor, because the
// names of sockets are limited to 108 bytes and those of folders are not.
func dialMonitor(ctx context.Context, dir string) (*monitor, error) {
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("reach QEMU: %w", err)
	}
	defer folder.Close()
	path := filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), socketName)
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reach QEMU: %w", err)
	}
	m := &monitor{
		conn: c.(*net.UnixConn), turn: make(chan struct{}, 1), answer: make(chan reply, 1), closed: make(chan struct{}), heard: make(chan struct{}, 1),
	}
	go m.listen()
	if err := m.call(ctx, "qmp_capabilities", nil, nil, nil); err != nil {
		m.close()
		return nil, fmt.Errorf("reach QEMU: %w", err)
	}
	return m, nil
}

func (m *monitor) close() { _ = m.conn.Close() }

// listen reads until the connection ends.
func (m *monitor) listen() {
	defer close(m.closed)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxLine)
	for lines.Scan() {
		var in struct {
			reply
			event
			Greeting json.RawMessage `json:"QMP"`
		}
		if err := json.Unmarshal(lines.Bytes(), &in); err != nil {
			break // not QMP: whatever it is, it is not to be talked to
		}
		switch {
		case in.Name != "":
			m.note(in.event)
		case in.Greeting == nil:
			select {
			case m.answer <- in.reply:
			default: // to a command that was given up: see call
			}
		}
	}
	_ = m.conn.Close()
}

func (m *monitor) note(e event) {
	m.mu.Lock()
	if m.events = append(m.events, e); len(m.events) > maxEvents {
		m.events = m.events[1:]
	}
	m.mu.Unlock()
	select {
	case m.heard <- struct{}{}:
	default:
	}
}

// next waits for an event. It is for one caller.
func (m *monitor) next(ctx context.Context) (event, error) {
	for {
		m.mu.Lock()
		if len(m.events) > 0 {
			e := m.events[0]
			m.events = m.events[1:]
			m.mu.Unlock()
			return e, nil
		}
		m.mu.Unlock()
		select {
		case <-m.heard:
		case <-m.closed:
			return event{}, errClosed
		case <-ctx.Done():
			return event{}, ctx.Err()
		}
	}
}

// call sends a command, with a file beside it where there is one, and decodes its answer into out. A command that is not answered in time leaves
// the connection unusable: it is closed, so that no answer is ever taken for another's.
func (m *monitor) call(ctx context.Context, command string, args any, file *os.File, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-m.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	deadline, _ := ctx.Deadline()
	_ = m.conn.SetWriteDeadline(deadline)
	if _, _, err := m.conn.WriteMsgUnix(append(b, '\n'), rights, nil); err != nil {
		m.close()
		return fmt.Errorf("%s: %w", command, errors.Join(errClosed, err))
	}
	var r reply
	select {
	case r = <-m.answer:
	case <-m.closed:
		select {
		case r = <-m.answer: // its last words
		default:
			return fmt.Errorf("%s: %w", command, errClosed)
		}
	case <-ctx.Done():
		m.close()
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
	if r.Error != nil {
		return fmt.Errorf("%s: %w", command, r.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("%s: read answer: %w", command, err)
	}
	return nil
}

// The run states that matter here (qapi/run-state.json).
const (
	stateRunning  = "running"
	statePaused   = "paused"
	stateShutdown = "shutdown"
)

// status asks what the guest's processors do.
func (m *monitor) status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.call(ctx, "query-status", nil, nil, &s)
	return s.Status, err
}

func (m *monitor) stop(ctx context.Context) error { return m.call(ctx, "stop", nil, nil, nil) }
func (m *monitor) cont(ctx context.Context) error { return m.call(ctx, "cont", nil, nil, nil) }

// console takes what the guest wrote to its serial port since the last time, the newest 64 KiB of it.
func (m *monitor) console(ctx context.Context) ([]byte, error) {
	var b []byte // base64, as encoding/json has it
	err := m.call(ctx, "ringbuf-read", map[string]any{"device": consoleID, "size": consoleSize, "format": "base64"}, nil, &b)
	return b, err
}

// prepareMigration sets what both ends of a migration must agree on, and takes the brakes off. The guest's memory is not part of it where
// it is a shared file.
func (m *monitor) prepareMigration(ctx context.Context) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	caps := map[string]any{"capabilities": []capability{{"x-ignore-shared", true}}}
	if err := m.call(ctx, "migrate-set-capabilities", caps, nil, nil); err != nil {
		return err
	}
	return m.call(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40}, nil, nil)
}

// save writes the devices' state, and memory that is not shared, into f.
func (m *monitor) save(ctx context.Context, f *os.File) error {
	if err := m.call(ctx, "getfd", map[string]any{"fdname": stateName}, f, nil); err != nil {
		return err
	}
	if err := m.call(ctx, "migrate", map[string]any{"uri": "fd:" + stateName}, nil, nil); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// load reads into the machine, which was started with -incoming defer, what save wrote. fd is QEMU's own number of the file.
func (m *monitor) load(ctx context.Context, fd int) error {
	if err := m.call(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + strconv.Itoa(fd)}, nil, nil); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// migrated waits for the end of a migration. QEMU is asked, because the event that tells is lost with a connection.
func (m *monitor) migrated(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		var s struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := m.call(ctx, "query-migrate", nil, nil, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled", "cancelling":
			return fmt.Errorf("migration %s: %s", s.Status, s.Why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
