package guest

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// maxGrace bounds how long a shutdown may wait for processes to end by themselves.
const maxGrace = 10 * time.Minute

// shutdown ends every process of the guest. The agent itself stays, so that files can still be fetched.
func (a *Agent) shutdown(w http.ResponseWriter, r *http.Request) {
	var req hostapi.Shutdown
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "read the body: %w", err))
		return
	}
	if req.GraceMs < 0 || req.GraceMs > maxGrace.Milliseconds() {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "graceMs must be between 0 and %d", maxGrace.Milliseconds()))
		return
	}
	alive := a.processes.Shutdown(r.Context(), time.Duration(req.GraceMs)*time.Millisecond)
	if alive == nil {
		alive = []int{}
	}
	answer(w, hostapi.Alive{Alive: alive})
}

// logBatch is how many entries are written between two looks at the journal.
const logBatch = 512

// logs answers GET /logs?since=SEQ&limit=N&follow=1 with one JSON object a line, oldest first.
func (a *Agent) logs(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	number := func(name string) (int64, error) {
		if !query.Has(name) {
			return 0, nil
		}
		n, err := strconv.ParseInt(query.Get(name), 10, 64)
		if err != nil || n < 0 {
			return 0, tartarus.Errorf(tartarus.Invalid, "%s must be a number from 0 up", name)
		}
		return n, nil
	}
	since, err1 := number("since")
	limit, err2 := number("limit")
	if err := errors.Join(err1, err2); err != nil {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "%w", err))
		return
	}
	follow := query.Get("follow") == "1" || query.Get("follow") == "true"
	w.Header().Set("Content-Type", "application/x-ndjson")
	control, out := http.NewResponseController(w), json.NewEncoder(w)
	for left := limit; ; {
		batch := logBatch
		if limit > 0 {
			batch = int(min(left, logBatch))
		}
		entries, changed := a.journal.Since(since, batch)
		for _, e := range entries {
			if out.Encode(e) != nil {
				return
			}
			since = e.Seq
		}
		left -= int64(len(entries))
		switch {
		case limit > 0 && left == 0:
			return
		case len(entries) == batch:
			continue
		case !follow:
			return
		}
		if control.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
