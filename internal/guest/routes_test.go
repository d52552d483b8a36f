package guest

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
)

// The rule of every route, a second time: who changes the table has to change it here, and think again.
func TestEveryRouteHasItsRule(t *testing.T) {
	want := map[string]access{
		"GET /health": open, "GET /metrics": token, "GET /envs": token,
		"GET /files": readSign, "POST /files": writeSign, "POST /files/compose": token,
		"POST /init": host, "POST /shutdown": host, "POST /terminate": host, "GET /inspect": host, "GET /logs": host, "GET /tunnel": host, "GET /volume": host,
		"POST /process.Process/": token, "POST /filesystem.Filesystem/": token,
	}
	a, err := New(Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range a.table() {
		rule, known := want[row.pattern]
		if !known || rule != row.rule || row.handle == nil {
			t.Errorf("%s: rule %d, want %d (known: %v)", row.pattern, row.rule, rule, known)
		}
		delete(want, row.pattern)
		_, path, _ := strings.Cut(row.pattern, " /")
		if first, _, _ := strings.Cut(path, "/"); slices.Contains(hostapi.Paths, first) != (rule == host) {
			t.Errorf("%s: hostapi.Paths and its rule do not agree", row.pattern)
		}
	}
	for pattern := range want {
		t.Errorf("%s is not in the table", pattern)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"listen": func(c *Config) { c.Listen = "" }, "root": func(c *Config) { c.Root = "" }, "journal": func(c *Config) { c.JournalBytes = 1 },
		"host": func(c *Config) { c.FromHost = nil }, "kernel": func(c *Config) { c.Kernel.SetClock = nil },
	} {
		c := Default()
		spoil(&c)
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), "guest: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	c := Default()
	c.Listen = busy.Addr().String()
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil {
		t.Error("it serves on a port that is taken")
	}
}
