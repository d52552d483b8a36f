package process

import (
	"sync"

	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// spares are pipes for the next process, made when one ends: with them a start has ten system calls less to wait for. At most one set
// is kept of those with a stdin and of those without.
type spares struct {
	mu     sync.Mutex
	kept   map[bool]*spawn.Wires
	closed bool
}

// take returns the kept pipes, or new ones.
func (s *spares) take(stdin bool) (*spawn.Wires, error) {
	s.mu.Lock()
	w := s.kept[stdin]
	delete(s.kept, stdin)
	s.mu.Unlock()
	if w != nil {
		return w, nil
	}
	return spawn.Pipes(stdin)
}

// refill makes pipes of the kind where none are kept. Without them the next start makes its own, and says what is wrong.
func (s *spares) refill(stdin bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.kept[stdin] != nil {
		return
	}
	if w, err := spawn.Pipes(stdin); err == nil {
		if s.kept == nil {
			s.kept = map[bool]*spawn.Wires{}
		}
		s.kept[stdin] = w
	}
}

func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, w := range s.kept {
		w.Close()
	}
	clear(s.kept)
}
