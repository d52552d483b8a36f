package olympus

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// metrics returns the kept measurements of a sandbox.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	start, err := unixSeconds(q, "start")
	if err != nil {
		return err
	}
	end, err := unixSeconds(q, "end")
	if err != nil {
		return err
	}
	if !end.IsZero() && end.Before(start) {
		return tartarus.Errorf(tartarus.Invalid, "start must not be after end")
	}
	sb, err := s.present(r, who)
	if err != nil {
		return err
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return err
	}
	samples, err := node.Samples(r.Context(), sb.ID, start, end)
	if err != nil {
		return err
	}
	out := make([]api.Metric, len(samples))
	for i, m := range samples {
		out[i] = answerMetric(m)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// unixSeconds reads a time that may be left out. 0 is the beginning of all times.
func unixSeconds(q url.Values, name string) (time.Time, error) {
	text := q.Get(name)
	if text == "" && !q.Has(name) {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > maxUnix {
		return time.Time{}, tartarus.Errorf(tartarus.Invalid, "%s %.20q must be a number of seconds since 1970", name, text)
	}
	return time.Unix(n, 0), nil
}

// maxUnix is the last second of the year 9999, the last that JSON's times can name.
const maxUnix = 253402300799

const (
	maxBatch   = 100             // sandboxes in one batch of metrics, as on one page of a listing
	batchHands = 8               // nodes asked at once
	newestAge  = 2 * time.Minute // a sandbox without a younger measurement has none
)

// metricsBatch returns the newest measurement of each of several sandboxes. Those that are unknown, or whose node is away, are left out.
func (s *Server) metricsBatch(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	ids, err := batchIDs(q["sandbox_ids"])
	if err != nil {
		return err
	}
	out := api.SandboxesMetrics{Sandboxes: map[string]api.Metric{}}
	var mu sync.Mutex
	var group sync.WaitGroup
	hands := make(chan struct{}, batchHands)
	for _, id := range ids {
		hands <- struct{}{}
		group.Go(func() {
			defer func() { <-hands }()
			defer s.survive()
			if m, ok := s.newest(r.Context(), who, id); ok {
				mu.Lock()
				defer mu.Unlock()
				out.Sandboxes[id] = answerMetric(m)
			}
		})
	}
	group.Wait()
	writeJSON(w, http.StatusOK, out)
	return nil
}

func batchIDs(lists []string) ([]string, error) {
	var ids []string
	for _, list := range lists {
		ids = append(ids, strings.Split(list, ",")...)
	}
	if len(ids) == 0 || len(ids) > maxBatch {
		return nil, tartarus.Errorf(tartarus.Invalid, "sandbox_ids must name 1 to %d sandboxes", maxBatch)
	}
	for _, id := range ids {
		if !tartarus.ValidID(id) {
			return nil, tartarus.Errorf(tartarus.Invalid, "sandbox_ids: %.40q is not the id of a sandbox", id)
		}
	}
	return ids, nil
}

// newest is the last measurement of one sandbox.
func (s *Server) newest(ctx context.Context, who caller, id string) (Sample, bool) {
	sb, err := s.cfg.Registry.Sandbox(ctx, who.key.Tenant, id)
	if err != nil || sb.Phase.Ended() {
		return Sample{}, false
	}
	node, err := s.cfg.Fleet.Node(ctx, sb.Node)
	if err != nil {
		return Sample{}, false
	}
	samples, err := node.Samples(ctx, id, who.now.Add(-newestAge), time.Time{})
	if err != nil || len(samples) == 0 {
		return Sample{}, false
	}
	return samples[len(samples)-1], true
}

// maxLogs is the most entries of one answer, and the default.
const maxLogs = 1000

// logsV1 returns a log in the form that only the SDKs' command line still asks for.
func (s *Server) logsV1(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	var query LogQuery
	if query.Limit, err = number(q, "limit", 1, maxLogs, maxLogs); err != nil {
		return err
	}
	if query.Cursor, err = logTime(q, "start"); err != nil {
		return err
	}
	entries, err := s.logs(r, who, query)
	if err != nil {
		return err
	}
	out := api.LogsV1{Logs: make([]api.LogLine, len(entries)), LogEntries: make([]api.LogEntry, len(entries))}
	for i, e := range entries {
		out.Logs[i] = api.LogLine{Timestamp: e.Time.UTC(), Line: logLine(e)}
		out.LogEntries[i] = answerLog(e)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// logLine is an entry in the form that the SDKs' command line reads: an object as JSON text, with a level, a logger and a message.
func logLine(e LogEntry) string {
	line := map[string]string{"logger": "agent"}
	maps.Copy(line, e.Fields)
	line["level"], line["message"] = e.Level, e.Message
	raw, err := json.Marshal(line)
	if err != nil {
		panic(err) // texts can always be encoded
	}
	return string(raw)
}

// logsV2 returns a page of a log.
func (s *Server) logsV2(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	query := LogQuery{Search: q.Get("search")}
	if query.Limit, err = number(q, "limit", 1, maxLogs, maxLogs); err != nil {
		return err
	}
	if query.Cursor, err = logTime(q, "cursor"); err != nil {
		return err
	}
	switch direction := q.Get("direction"); direction {
	case "", "forward":
	case "backward":
		query.Descending = true
	default:
		return tartarus.Errorf(tartarus.Invalid, "direction %.20q must be forward or backward", direction)
	}
	switch level := q.Get("level"); level {
	case "", "debug", "info", "warn", "error":
		query.Level = level
	default:
		return tartarus.Errorf(tartarus.Invalid, "level %.20q must be debug, info, warn or error", level)
	}
	entries, err := s.logs(r, who, query)
	if err != nil {
		return err
	}
	out := api.Logs{Logs: make([]api.LogEntry, len(entries))}
	for i, e := range entries {
		out.Logs[i] = answerLog(e)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// logTime reads a place in a log: milliseconds since 1970 as the SDKs send it, or a time with all its digits, which tells
// entries of one millisecond apart.
func logTime(q url.Values, name string) (time.Time, error) {
	text := q.Get(name)
	if text == "" && !q.Has(name) {
		return time.Time{}, nil
	}
	if ms, err := strconv.ParseInt(text, 10, 64); err == nil {
		if t, ok := unixMilli(ms); ok {
			return t, nil
		}
	} else if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	return time.Time{}, tartarus.Errorf(tartarus.Invalid, "%s %.40q must be milliseconds since 1970 or a time such as 2026-01-31T12:00:00Z", name, text)
}

// logs asks the node, which keeps them for a while after a sandbox has ended.
func (s *Server) logs(r *http.Request, who caller, q LogQuery) ([]LogEntry, error) {
	sb, err := s.lookUp(r, who)
	if err != nil {
		return nil, err
	}
	node, err := s.onNode(r, sb)
	if err != nil {
		return nil, err
	}
	return node.Logs(r.Context(), sb.ID, q)
}
