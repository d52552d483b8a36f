package sqlite

import (
	"context"
	"sync"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// finished is what an Await is told.
type finished struct {
	job acheron.Job
	err error
}

// told is where the end of a job is told.
type told chan finished

func (t told) wait(ctx context.Context) (acheron.Job, error) {
	select {
	case f := <-t:
		return f.job, f.err
	case <-ctx.Done():
		return acheron.Job{}, ctx.Err()
	}
}

// watchers are the Await calls by job, and the jobs whose end is still to be told.
type watchers struct {
	mu     sync.Mutex
	m      map[string][]told
	open   map[string]struct{}
	closed bool
}

// add says where the end of a job will be told, and whether it is sure to be.
func (w *watchers) add(id string) (ch told, open bool) {
	ch = make(told, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		ch <- finished{err: errClosed}
		return ch, true
	}
	w.m[id] = append(w.m[id], ch)
	_, open = w.open[id]
	return ch, open
}

// opened takes note of a job that is durable and has not ended.
func (w *watchers) opened(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[id] = struct{}{}
}

// are takes note of all such jobs.
func (w *watchers) are(jobs map[string]*entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.open)
	for id := range jobs {
		w.open[id] = struct{}{}
	}
}

func (w *watchers) remove(id string, ch told) {
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
	delete(w.open, j.ID)
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
