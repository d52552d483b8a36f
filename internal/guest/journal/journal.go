// Package journal keeps the newest log entries of a sandbox for the host to fetch: starts and ends of
// processes and what they print. It never holds more than its limit, and dropping the oldest never
// blocks a writer.
package journal

import (
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// entryOverhead is what an entry costs beside its message: struct, map header and a few small fields,
// measured at 350 to 450 bytes with three fields.
const entryOverhead = 400

func cost(e *hostapi.LogEntry) int { return len(e.Message) + entryOverhead }

// Journal is a ring of entries, safe for concurrent use. It holds no memory before its first entry.
type Journal struct {
	limit int
	now   func() time.Time

	mu      sync.Mutex
	entries []hostapi.LogEntry // entries[head:] are kept, oldest first
	head    int
	size    int
	seq     int64
	changed chan struct{} // closed at the next Add; nil while nobody waits
}

// New makes a Journal of at most limit bytes, counting a fixed overhead for each entry.
func New(limit int) *Journal { return &Journal{limit: limit, now: time.Now} }

// Add appends an entry and drops the oldest ones beyond the limit.
func (j *Journal) Add(level, message string, fields map[string]any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e := hostapi.LogEntry{Seq: j.seq, Time: j.now().UTC(), Level: level, Message: message, Fields: fields}
	j.entries = append(j.entries, e)
	j.size += cost(&e)
	for j.size > j.limit && j.head < len(j.entries) {
		j.size -= cost(&j.entries[j.head])
		j.entries[j.head] = hostapi.LogEntry{}
		j.head++
	}
	// Copying when half is empty makes every Add cheap on average.
	if j.head > 64 && j.head*2 > len(j.entries) {
		n := copy(j.entries, j.entries[j.head:])
		clear(j.entries[n:])
		j.entries, j.head = j.entries[:n], 0
	}
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// Since returns up to limit entries with a number above seq, oldest first, and a channel that is closed when
// a later Add happens. A limit of 0 means all.
func (j *Journal) Since(seq int64, limit int) ([]hostapi.LogEntry, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.entries[j.head:]
	// Numbers are consecutive, so the place is known without a search.
	first := j.seq - int64(len(kept)) + 1
	skip := min(max(seq+1-first, 0), int64(len(kept)))
	kept = kept[skip:]
	if limit > 0 && len(kept) > limit {
		kept = kept[:limit]
	}
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return append([]hostapi.LogEntry(nil), kept...), j.changed
}
