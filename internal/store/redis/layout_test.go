package redis

import (
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// A store of another layout is refused, with what to do about it, and left as it is.
func TestOtherLayout(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--appendfsync", "no")
	c := Config{Addrs: []string{s.addr()}, Prefix: "old:"}
	db := openTest(t, c)
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	key := db.tag("layout") + "layout"
	if err := db.rdb.HSet(t.Context(), key, "version", "1").Err(); err != nil {
		t.Fatal(err)
	}
	db = openTest(t, c)
	for what, call := range map[string]func() error{
		"ping": func() error { return db.Ping(t.Context()) },
		"list": func() error {
			_, err := db.Registry().ListSandboxes(t.Context(), hades.Query{Tenant: hades.AnyTenant, Limit: 1})
			return err
		},
	} {
		if err := call(); !tartarus.Is(err, tartarus.Unsupported) || !strings.Contains(err.Error(), "run that version") || !strings.Contains(err.Error(), "redis.prefix") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v, err := db.rdb.HGet(t.Context(), key, "version").Result(); err != nil || v != "1" {
		t.Errorf("the layout is %q now, %v", v, err)
	}
	c.Prefix = "new:"
	if err := openTest(t, c).Ping(t.Context()); err != nil {
		t.Errorf("another prefix: %v", err)
	}
}
