// Package process runs the commands of clients inside the guest. A process belongs to nobody's connection:
// it outlives the client that started it, and a client that reads slowly slows the process down instead of
// filling the agent's memory.
//
// Each process leads its own session. Output is read in pieces and handed to every attached client; the
// reader waits for the slowest of them, so that the pipe fills and the process blocks. With nobody
// attached the output is dropped. The end is remembered for a while, so that a client which comes
// back late learns how it ended.
package process

import (
	"sync"
	"syscall"
	"time"

	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// Chunk is a piece of output. Its bytes are shared by all clients and never change.
type Chunk struct {
	Stream spawn.Stream
	Data   []byte
}

// End is how a process ended.
type End struct {
	ExitCode int32  // -1 when a signal ended it
	Exited   bool   // false when a signal ended it
	Status   string // "exit status 7", "signal: killed"
	Error    string // empty when the exit code is 0
	timedOut bool
}

// Process is one command that runs, or ran.
type Process struct {
	PID    int
	Tag    *string
	Config *processpb.ProcessConfig

	seq      uint64          // in order of start
	stdin    *input          // nil when it was started without
	terminal *spawn.Terminal // nil without one
	outputs  []spawn.Output

	mu     sync.Mutex
	subs   []*Subscription
	exited bool // reaped: its number may belong to somebody else now

	readers sync.WaitGroup
	exit    chan struct{} // closed when it is reaped
	done    chan struct{} // closed when all its output is handed over too; end is set by then
	status  syscall.WaitStatus
	end     End
	endedAt time.Time
	timer   *time.Timer // kills it when the time of its Start call is up; may be nil
	expired bool        // the timer did
}

// Subscription is one client's view of a process's output, from the moment of Attach on.
type Subscription struct {
	chunks chan Chunk
	gone   chan struct{}
	once   sync.Once
	p      *Process
}

// queued is how many chunks wait for one client: enough that reading the pipe and writing to the network overlap,
// and at most 4 × 32 KiB of memory.
const queued = 4

// Attach subscribes to the output. The caller must Close the Subscription, and must go on reading
// Chunks until then: the process waits for it.
func (p *Process) Attach() *Subscription {
	s := &Subscription{chunks: make(chan Chunk, queued), gone: make(chan struct{}), p: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A new slice, because publish goes through the old one without the lock.
	p.subs = append(append([]*Subscription(nil), p.subs...), s)
	return s
}

// Chunks is the output. It is not closed at the end; Process.Done is.
func (s *Subscription) Chunks() <-chan Chunk { return s.chunks }

// Close ends the Subscription; the process no longer waits for this client.
func (s *Subscription) Close() {
	s.once.Do(func() {
		close(s.gone)
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		var rest []*Subscription
		for _, other := range s.p.subs {
			if other != s {
				rest = append(rest, other)
			}
		}
		s.p.subs = rest
	})
}

// publish hands a chunk to every client and waits until each has room for it or is gone.
func (p *Process) publish(c Chunk) {
	p.mu.Lock()
	subs := p.subs
	p.mu.Unlock()
	for _, s := range subs {
		select {
		case s.chunks <- c:
		case <-s.gone:
		}
	}
}

// attached reports whether anybody would see a chunk.
func (p *Process) attached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.subs) > 0
}

// Done is closed when the process has ended and its output is handed over. End may be read then.
func (p *Process) Done() <-chan struct{} { return p.done }

// End is how it ended; valid once Done is closed.
func (p *Process) End() End { return p.end }

// endOf words a wait status as clients know it.
func endOf(ws syscall.WaitStatus) End {
	switch {
	case ws.Signaled():
		text := "signal: " + ws.Signal().String()
		if ws.CoreDump() {
			text += " (core dumped)"
		}
		return End{ExitCode: -1, Status: text, Error: text}
	case ws.ExitStatus() == 0:
		return End{Exited: true, Status: "exit status 0"}
	}
	text := "exit status " + itoa(ws.ExitStatus())
	return End{ExitCode: int32(ws.ExitStatus()), Exited: true, Status: text, Error: text}
}
