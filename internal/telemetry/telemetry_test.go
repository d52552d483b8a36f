package telemetry

import (
	"bufio"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// scrape returns the samples that a Prometheus would see, by name and labels.
func scrape(t *testing.T, r *Registry) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	out := map[string]string{}
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && !strings.HasPrefix(name, "#") {
			out[name] = value
		}
	}
	return out
}

func TestWhatANodeCounts(t *testing.T) {
	r := New("v1.2.3")
	n := r.Node()
	r.Watch(func() State {
		return State{Phases: map[tartarus.Phase]int{tartarus.Running: 3, tartarus.Paused: 2}, Terminating: 1, Hibernated: 2, Freed: 40 << 20, Guests: 2, Guest: tartarus.GuestMemory{Total: 9, Available: 5, Returned: 3}}
	})
	n.Created(20*time.Millisecond, nil)
	n.Created(time.Second, tartarus.Errorf(tartarus.Unavailable, "no room"))
	n.Created(time.Second, errors.New("no kind"))
	n.Created(time.Second, &tartarus.Error{Kind: "what a driver made up"})
	n.Ended(tartarus.ReasonTimeout, 40*time.Millisecond)
	n.Cancelled()
	n.Hibernated(300*time.Millisecond, nil)
	n.Woken(90*time.Millisecond, nil)
	n.Woken(time.Second, tartarus.Errorf(tartarus.Corrupt, "a flipped bit"))
	n.Devices(tartarus.DeviceCounts{DiskRead: 5, NetSent: 7, DiskThrottled: 1, SerialWritten: 9})
	n.Devices(tartarus.DeviceCounts{DiskRead: 6, Forbidden: 1})
	got := scrape(t, r)
	for name, want := range map[string]string{
		`tartarus_build_info{version="v1.2.3"}`:       "1",
		`tartarus_starts_total{result="ok"}`:          "1",
		`tartarus_starts_total{result="unavailable"}`: "1",
		`tartarus_starts_total{result="internal"}`:    "2",
		`tartarus_start_seconds_count`:                "1",
		`tartarus_start_seconds_bucket{le="0.01"}`:    "0",
		`tartarus_start_seconds_bucket{le="0.025"}`:   "1",
		`tartarus_ends_total{reason="timeout"}`:       "1",
		`tartarus_end_seconds_count`:                  "1",
		`tartarus_terminations_cancelled_total`:       "1",
		`tartarus_hibernations_total{result="ok"}`:    "1",
		`tartarus_hibernation_seconds_count`:          "1",
		`tartarus_wakes_total{result="ok"}`:           "1",
		`tartarus_wakes_total{result="corrupt"}`:      "1",
		`tartarus_wake_seconds_bucket{le="0.1"}`:      "1",
		`tartarus_wake_seconds_count`:                 "1",
		`tartarus_node_sandboxes{phase="running"}`:    "3",
		`tartarus_node_sandboxes{phase="starting"}`:   "0",
		`tartarus_node_terminations_pending`:          "1",
		`tartarus_node_hibernated_sandboxes`:          "2",
		`tartarus_node_hibernated_memory_bytes`:       "4.194304e+07",

		`tartarus_microvm_guests`:                                "2",
		`tartarus_microvm_guest_memory_bytes{kind="total"}`:      "9",
		`tartarus_microvm_guest_memory_bytes{kind="available"}`:  "5",
		`tartarus_microvm_guest_memory_bytes{kind="free"}`:       "0",
		`tartarus_microvm_guest_memory_bytes{kind="returned"}`:   "3",
		`tartarus_microvm_disk_bytes_total{direction="read"}`:    "11",
		`tartarus_microvm_disk_bytes_total{direction="written"}`: "0",
		`tartarus_microvm_network_bytes_total{direction="sent"}`: "7",
		`tartarus_microvm_throttled_total{device="disk"}`:        "1",
		`tartarus_microvm_serial_bytes_total`:                    "9",
		`tartarus_microvm_forbidden_calls_total`:                 "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
	if got["go_goroutines"] == "" || got["process_open_fds"] == "" {
		t.Error("the process is missing")
	}
}

// TestRegistriesAreApart holds that two stacks in one process do not count each other.
func TestRegistriesAreApart(t *testing.T) {
	a, b := New("a"), New("b")
	a.Node().Cancelled()
	b.Node()
	if got := scrape(t, b)["tartarus_terminations_cancelled_total"]; got != "0" {
		t.Errorf("the other registry has %q", got)
	}
}
