package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
)

// toBeKilled, in the environment, makes this binary a control plane in that folder that says whom it has acknowledged until it is killed.
const toBeKilled = "TARTARUS_TEST_CONTROL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(toBeKilled); dir != "" {
		fmt.Fprintln(os.Stderr, acknowledge(context.Background(), dir))
		os.Exit(1) // it should not have come to an end
	}
	os.Exit(m.Run())
}

func acknowledge(ctx context.Context, dir string) error {
	cfg := ControlConfig{N: 1_000_000, Concurrency: 32, Store: "embedded"}
	p, err := openPlane(ctx, cfg, dir)
	if err != nil {
		return err
	}
	all, err := dial(ctx, p.url+"/v2/sandboxes", p.secret, createBody, cfg.Concurrency)
	if err != nil {
		return err
	}
	all.load(ctx, cfg.N, func(status int, body []byte, _ time.Duration, err error) {
		if status == 201 && err == nil {
			fmt.Println(sandboxID(body))
		}
	})
	return errors.New("all was acknowledged")
}

// A control plane that is killed in the midst of creates has every one of which it told.
func TestControlKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), toBeKilled+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for s := bufio.NewScanner(out); s.Scan(); {
		if told[s.Text()] = true; len(told) == 500 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // it was killed
	delete(told, "")
	if len(told) < 500 {
		t.Fatalf("only %d creates were acknowledged", len(told))
	}
	db, err := sqlite.Open(t.Context(), sqlite.Default(filepath.Join(dir, "store.db")))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	journal, err := db.Journal().All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range told {
		if journal[id] == nil {
			t.Errorf("the node does not know of %s any more, which was acknowledged", id)
		}
	}
	n := len(told)
	if err := lost(t.Context(), db.Registry(), told); err != nil || len(told) > 0 {
		t.Errorf("%d of %d that were acknowledged are not in the registry, %v", len(told), n, err)
	}
}

// A run small enough for a test goes through everything, and finds every create it was told of.
func TestControl(t *testing.T) {
	stores := []string{"embedded"}
	if _, err := exec.LookPath("redis-server"); err == nil {
		stores = append(stores, "redis")
	}
	for _, store := range stores {
		rep, err := Control(t.Context(), ControlConfig{N: 50, Concurrency: 8, Store: store})
		if err != nil || rep.Failed != 0 || rep.PerSecond <= 0 || rep.P50 <= 0 || rep.Floor.PerSecond <= 0 {
			t.Errorf("%s: %+v, %v", store, rep, err)
		}
	}
	rep, err := Control(t.Context(), ControlConfig{N: 20, Concurrency: 1, Store: "embedded", Nodes: 100, Sandboxes: 300})
	if err != nil || rep.Failed != 0 || rep.Extra["placement_p99_ms"] <= 0 || rep.Extra["list_page_ms"] <= 0 {
		t.Errorf("size: %+v, %v", rep, err)
	}
	for _, bad := range []ControlConfig{{}, {N: 1, Concurrency: 1, Store: "x"}, {N: 1, Concurrency: 1, Store: "embedded", Nodes: -1}} {
		if _, err := Control(t.Context(), bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
