package firecracker

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// monitor stands for a monitor's API: it answers each path with what a test wants.
func monitor(t *testing.T, answer func(method, path string) (int, string)) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, body := answer(r.Method, r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	folder, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = folder.Close() })
	return &Client{dir: folder, name: "api.sock"}
}

// TestGuestMemory has a monitor say what guests' balloon drivers say, true and false.
func TestGuestMemory(t *testing.T) {
	const full = `{"target_pages":0,"actual_pages":512,"target_mib":0,"actual_mib":2,"swap_in":0,"swap_out":0,"major_faults":7,"minor_faults":9,
		"free_memory":40000000,"total_memory":128000000,"available_memory":90000000,"disk_caches":30000000,"hugetlb_allocations":0,"hugetlb_failures":0}`
	for name, tc := range map[string]struct {
		code int
		body string
		want *tartarus.GuestMemory
		err  string
	}{
		"a driver":             {200, full, &tartarus.GuestMemory{Total: 128000000, Free: 40000000, Available: 90000000, Cached: 30000000, Returned: 2 << 20}, ""},
		"none":                 {400, `{"fault_message":"The balloon device is not activated"}`, nil, ""},
		"just started":         {200, `{"target_pages":0,"actual_pages":0,"target_mib":0,"actual_mib":0}`, nil, ""},
		"more free than there": {200, `{"total_memory":10,"free_memory":11}`, nil, ""},
		"less than nothing":    {200, `{"total_memory":10,"free_memory":-11}`, nil, ""},
		"beyond every machine": {200, `{"total_memory":9223372036854775807,"free_memory":9223372036854775807}`, nil, ""},
		"no JSON":              {200, `{"total_memory":`, nil, "read answer"},
		"no number":            {200, `{"total_memory":"many"}`, nil, "read answer"},
		"an answer too long":   {200, `{"x":"` + strings.Repeat("x", mostAnswer) + `"}`, nil, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			c := monitor(t, func(_, path string) (int, string) {
				if path != "/balloon/statistics" {
					return 404, ""
				}
				return tc.code, tc.body
			})
			got, err := c.guestMemory(t.Context())
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("got %v", err)
			}
			if (got == nil) != (tc.want == nil) || got != nil && *got != *tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestCounters writes accounts into the pipe as monitors do, and as one would that was taken over.
func TestCounters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	if err := makePipe(path, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	c, err := count(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	say := func(line string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		before := c.seen()
		if _, err := io.WriteString(f, line+"\n"+`{"uart":{"write_count":1}}`+"\n"); err != nil {
			t.Fatal(err)
		}
		for c.after(ctx, before); c.sumOf().SerialWritten == 0; c.after(ctx, c.seen()) {
			if ctx.Err() != nil {
				t.Fatal("the line did not come")
			}
		}
	}
	const one = `{"utc_timestamp_ms":1,"block":{"read_bytes":4096,"write_bytes":512,"rate_limiter_throttled_events":3},"block_disk":{"read_bytes":4096},` +
		`"net":{"rx_bytes_count":100,"tx_bytes_count":50,"rx_rate_limiter_throttled":1,"tx_rate_limiter_throttled":2},"seccomp":{"num_faults":1}}`
	for name, tc := range map[string]struct {
		line string
		want tartarus.DeviceCounts
	}{
		"an account":      {one, tartarus.DeviceCounts{DiskRead: 4096, DiskWritten: 512, DiskThrottled: 3, NetReceived: 100, NetSent: 50, NetThrottled: 3, Forbidden: 1}},
		"two":             {one + "\n" + one, tartarus.DeviceCounts{DiskRead: 8192, DiskWritten: 1024, DiskThrottled: 6, NetReceived: 200, NetSent: 100, NetThrottled: 6, Forbidden: 2}},
		"no JSON":         {`{"block":`, tartarus.DeviceCounts{}},
		"negative":        {`{"block":{"read_bytes":-5}}`, tartarus.DeviceCounts{}},
		"huge":            {`{"block":{"read_bytes":9223372036854775807}}`, tartarus.DeviceCounts{DiskRead: mostCount}},
		"without an end":  {strings.Repeat("x", 3*mostLine), tartarus.DeviceCounts{}},
		"JSON and no end": {fmt.Sprintf(`{"pad":"%s","block":{"read_bytes":1}}`, strings.Repeat("x", mostLine)), tartarus.DeviceCounts{}},
	} {
		say(tc.line)
		tc.want.SerialWritten = 1
		if got := c.take(); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
		if again := c.take(); again != (tartarus.DeviceCounts{}) {
			t.Errorf("%s: counted twice: %+v", name, again)
		}
	}
}

func (c *counters) sumOf() tartarus.DeviceCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}
