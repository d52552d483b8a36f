package sqlite

import (
	"sync"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// finished is what an Await is told.
type finished struct {
	job acheron.Job
	err error
}

// watchers are the Await calls by job.
type watchers struct {
	mu     sync.Mutex
	m      map[string][]chan<- finished
	closed bool
}

func (w *watchers) add(id string) chan finished {
	ch := make(chan finished, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		ch <- finished{err: errClosed}
		return ch
	}
	w.m[id] = append(w.m[id], ch)
	return ch
}

func (w *watchers) remove(id string, ch chan<- finished) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := w.m[id][:0]
	for _, o := range w.m[id] {
		if o != ch {
			left = append(left, o)
		}
	}
	if len(left) == 0 {
		delete(w.m, id)
		return
	}
	clear(w.m[id][len(left):])
	w.m[id] = left
}

func (w *watchers) tell(j acheron.Job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range w.m[j.ID] {
		ch <- finished{job: j}
	}
	delete(w.m, j.ID)
}

func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for id, chs := range w.m {
		for _, ch := range chs {
			ch <- finished{err: errClosed}
		}
		delete(w.m, id)
	}
}
