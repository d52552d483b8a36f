package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signals hands the process's signals to whoever asked for them last, and to the context of the whole command
// when nobody did.
type signals struct {
	incoming chan os.Signal
	pipe     chan os.Signal // never read
	done     chan struct{}
	stopped  chan struct{}

	mu    sync.Mutex
	taker chan os.Signal
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return "stopped by signal: " + i.signal.String() }

func watchSignals(cancel context.CancelCauseFunc) *signals {
	s := &signals{incoming: make(chan os.Signal, 8), pipe: make(chan os.Signal, 1), done: make(chan struct{}), stopped: make(chan struct{})}
	signal.Notify(s.incoming, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// Without a receiver a write to a closed stdout would end the process before it has cleaned up.
	signal.Notify(s.pipe, syscall.SIGPIPE)
	go func() {
		defer close(s.stopped)
		for {
			select {
			case got := <-s.incoming:
				s.deliver(got, cancel)
			case <-s.done:
				return
			}
		}
	}()
	return s
}

func (s *signals) deliver(got os.Signal, cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taker == nil {
		cancel(interrupted{got.(syscall.Signal)})
		signal.Reset(syscall.SIGINT) // whoever presses Ctrl-C again does not want to wait for an orderly end
		return
	}
	select {
	case s.taker <- got:
	default: // whoever does not read eight signals reads no ninth
	}
}

// take diverts signals to the returned channel until release is called.
func (s *signals) take() (taken <-chan os.Signal, release func()) {
	ch := make(chan os.Signal, 8)
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.taker
	s.taker = ch
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taker = before
	}
}

func (s *signals) stop() {
	signal.Stop(s.incoming)
	signal.Stop(s.pipe)
	close(s.done)
	<-s.stopped
}
