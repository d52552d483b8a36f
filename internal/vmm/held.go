package vmm

import (
	"sync"

	"github.com/tartarus-sandbox/tartarus"
)

// Held are the ids of the machines that a driver makes or holds in this process: two of one id are never under way. It starts empty.
type Held struct {
	mu  sync.Mutex
	ids map[string]struct{}
}

// Claim takes an id until Release.
func (h *Held) Claim(id string) error {
	if !tartarus.ValidID(id) {
		return tartarus.Errorf(tartarus.Invalid, "machine id %q is not lower-case letters and digits", id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, taken := h.ids[id]; taken {
		return tartarus.Errorf(tartarus.Conflict, "machine %s exists", id)
	}
	if h.ids == nil {
		h.ids = map[string]struct{}{}
	}
	h.ids[id] = struct{}{}
	return nil
}

// Release gives an id back; one that is not claimed is no error.
func (h *Held) Release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ids, id)
}

// Has reports whether an id is claimed.
func (h *Held) Has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.ids[id]
	return ok
}
