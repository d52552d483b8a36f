package hecatoncheir

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

const (
	// maxLogEntries is more than the agent's ring of 1 MiB can hold.
	maxLogEntries = 1 << 16
	// keepLogFiles and keepLogTime bound the logs of ended sandboxes: a thousand of at most 1 MiB, for a day.
	keepLogFiles = 1000
	keepLogTime  = 24 * time.Hour
)

var severity = map[string]int{"debug": 0, "info": 1, "warn": 2, "error": 3}

// Logs returns entries in order; also of ended sandboxes while the node keeps them.
func (a *Agent) Logs(ctx context.Context, id string, q tartarus.LogQuery) ([]tartarus.LogEntry, error) {
	var all []tartarus.LogEntry
	h, err := a.awake(ctx, id)
	if err == nil {
		h.conns.touch(time.Now())
		all, err = h.fetchLogs(ctx)
	} else {
		all, err = a.keptLogs(id)
	}
	if err != nil {
		return nil, err
	}
	return selectLogs(all, q), nil
}

// selectLogs applies a query to entries in order.
func selectLogs(all []tartarus.LogEntry, q tartarus.LogQuery) []tartarus.LogEntry {
	if q.Descending {
		slices.Reverse(all)
	}
	limit := cmp.Or(q.Limit, 1000)
	out := make([]tartarus.LogEntry, 0, min(len(all), limit))
	for _, e := range all {
		early, late := e.Time.Before(q.Cursor), e.Time.After(q.Cursor)
		switch {
		case !q.Cursor.IsZero() && (early && !q.Descending || late && q.Descending):
		case q.Level != "" && severity[e.Level] < severity[q.Level]:
		case q.Search != "" && !strings.Contains(e.Message, q.Search):
		default:
			out = append(out, e)
		}
		if len(out) == limit {
			break
		}
	}
	return out
}

// fetchLogs reads what the agent in the guest has kept.
func (h *held) fetchLogs(ctx context.Context) ([]tartarus.LogEntry, error) {
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if guest == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	var out []tartarus.LogEntry
	err := guest.Logs(ctx, 0, maxLogEntries, false, func(e guestclient.LogEntry) error {
		fields := make(map[string]string, len(e.Fields))
		for k, v := range e.Fields {
			fields[k] = fmt.Sprint(v)
		}
		out = append(out, tartarus.LogEntry{Time: e.Time, Level: e.Level, Message: e.Message, Fields: fields})
		return nil
	})
	return out, err
}

// keepLogs saves the log of a sandbox that is about to end. One that no longer answers has no log to give.
func (a *Agent) keepLogs(ctx context.Context, h *held) error {
	h.mu.Lock()
	running := h.machine != nil
	h.mu.Unlock()
	if !running {
		return nil
	}
	entries, err := h.fetchLogs(ctx)
	if err == nil && len(entries) > 0 {
		err = a.writeLog(h.spec.ID, entries)
	}
	return err
}

func (a *Agent) logDir() string { return filepath.Join(a.cfg.Dir, "logs") }

func (a *Agent) logFile(id string) string { return filepath.Join(a.logDir(), id+".ndjson") }

func (a *Agent) writeLog(id string, entries []tartarus.LogEntry) error {
	if err := os.MkdirAll(a.logDir(), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(a.logFile(id), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, e := range entries {
		err = errors.Join(err, enc.Encode(e))
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// keptLogs reads the log of an ended sandbox.
func (a *Agent) keptLogs(id string) ([]tartarus.LogEntry, error) {
	if !tartarus.ValidID(id) {
		return nil, tartarus.Errorf(tartarus.NotFound, "%q is no sandbox", id)
	}
	f, err := os.Open(a.logFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	var out []tartarus.LogEntry
	for dec := json.NewDecoder(f); dec.More(); {
		var e tartarus.LogEntry
		if err := dec.Decode(&e); err != nil {
			return out, nil // the process died while it wrote: what is whole counts
		}
		out = append(out, e)
	}
	return out, nil
}

// sweepLogs removes logs that are old or too many, oldest first.
func (a *Agent) sweepLogs(now time.Time) error {
	entries, err := os.ReadDir(a.logDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list logs: %w", err)
	}
	type file struct {
		path string
		time time.Time
	}
	files := make([]file, 0, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, file{filepath.Join(a.logDir(), e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(x, y file) int { return y.time.Compare(x.time) })
	var errs []error
	for i, f := range files {
		if i >= keepLogFiles || now.Sub(f.time) > keepLogTime {
			errs = append(errs, os.Remove(f.path))
		}
	}
	return errors.Join(errs...)
}

// tidyEvery is how often old logs are looked for: more often than they could pile up, seldom enough to cost nothing.
const tidyEvery = time.Hour

// tidy removes what is kept for a while only.
func (a *Agent) tidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		if err := a.sweepLogs(time.Now()); err != nil {
			a.log.Warn("old logs not removed", "error", err)
		}
		if err := a.tidyEvidence(ctx, time.Now()); err != nil {
			a.log.Warn("old evidence not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
