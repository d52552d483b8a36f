package guest_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
)

// watchDir watches over a stream and collects "TYPE name" until the test ends.
func (a *agent) watchDir(t *testing.T, req *filesystempb.WatchDirRequest, header ...string) (next func() *filesystempb.WatchDirResponse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	r := as("root", req)
	for i := 0; i < len(header); i += 2 {
		r.Header().Set(header[i], header[i+1])
	}
	stream, err := a.fs.WatchDir(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		stream.Close()
	})
	next = func() *filesystempb.WatchDirResponse {
		t.Helper()
		if !stream.Receive() {
			t.Fatalf("the stream ended: %v", stream.Err())
		}
		return stream.Msg()
	}
	if next().GetStart() == nil {
		t.Fatal("the first event is not start")
	}
	return next
}

func expect(t *testing.T, next func() *filesystempb.WatchDirResponse, want ...string) {
	t.Helper()
	for _, w := range want {
		e := next().GetFilesystem()
		if got := strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_") + " " + e.GetName(); got != w {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func TestWatchDir(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	next := a.watchDir(t, &filesystempb.WatchDirRequest{Path: dir})
	must(os.WriteFile(dir+"/f", []byte("x"), 0o644))
	expect(t, next, "CREATE f", "WRITE f")
	must(os.Chmod(dir+"/f", 0o600))
	expect(t, next, "CHMOD f")
	must(os.Rename(dir+"/f", dir+"/g"))
	expect(t, next, "RENAME f", "CREATE g")
	must(os.Remove(dir + "/g"))
	expect(t, next, "REMOVE g")
	must(os.Mkdir(dir+"/sub", 0o755))
	expect(t, next, "CREATE sub")
	// Not recursive: what happens below is not told.
	must(os.WriteFile(dir+"/sub/f", nil, 0o644))
	must(os.WriteFile(dir+"/last", nil, 0o644))
	expect(t, next, "CREATE last")
}

func TestWatchDirRecursive(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir+"/old/deep", 0o755))
	next := a.watchDir(t, &filesystempb.WatchDirRequest{Path: dir, Recursive: true, IncludeEntry: true})
	must(os.WriteFile(dir+"/old/deep/f", []byte("x"), 0o644))
	expect(t, next, "CREATE old/deep/f", "WRITE old/deep/f")
	// Folders made at once: whatever is faster, each thing is told as created exactly once.
	must(os.MkdirAll(dir+"/new/a/b/c", 0o755))
	must(os.WriteFile(dir+"/new/a/b/c/f", nil, 0o644))
	expect(t, next, "CREATE new", "CREATE new/a", "CREATE new/a/b", "CREATE new/a/b/c", "CREATE new/a/b/c/f")
	// A folder that moves is known by its new name from then on.
	must(os.Rename(dir+"/new/a", dir+"/moved"))
	expect(t, next, "RENAME new/a", "CREATE moved")
	must(os.WriteFile(dir+"/moved/b/c/g", nil, 0o644))
	expect(t, next, "CREATE moved/b/c/g")
	must(os.Remove(dir + "/moved/b/c/g"))
	e := next().GetFilesystem()
	if e.GetType() != filesystempb.EventType_EVENT_TYPE_REMOVE || e.GetEntry() != nil {
		t.Errorf("%v", e)
	}
	must(os.Chmod(dir+"/moved", 0o700))
	if e = next().GetFilesystem(); e.GetType() != filesystempb.EventType_EVENT_TYPE_CHMOD || e.GetEntry().GetPath() != dir+"/moved" || e.GetEntry().GetMode() != 0o700 {
		t.Errorf("%v", e)
	}
}

func TestWatchDirKeepalive(t *testing.T) {
	t.Parallel() // it waits for time to pass
	a := start(t)
	next := a.watchDir(t, &filesystempb.WatchDirRequest{Path: openDir(t)}, "Keepalive-Ping-Interval", "1")
	if next().GetKeepalive() == nil {
		t.Error("no keepalive")
	}
}

func TestWatchersForPolling(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	ctx := t.Context()
	made, err := a.fs.CreateWatcher(ctx, as("root", &filesystempb.CreateWatcherRequest{Path: dir, Recursive: true}))
	if err != nil {
		t.Fatal(err)
	}
	id := made.Msg.WatcherId
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	var got []string
	eventually(t, "both events come", func() bool {
		res, err := a.fs.GetWatcherEvents(ctx, as("root", &filesystempb.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range res.Msg.Events {
			got = append(got, e.Name)
		}
		return len(got) >= 2
	})
	if !slices.Equal(got, []string{"a", "a/b"}) {
		t.Errorf("%v", got)
	}
	if _, err := a.fs.RemoveWatcher(ctx, as("root", &filesystempb.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{id, "", "../x"} {
		if _, err := a.fs.GetWatcherEvents(ctx, as("root", &filesystempb.GetWatcherEventsRequest{WatcherId: id})); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := a.fs.RemoveWatcher(ctx, as("root", &filesystempb.RemoveWatcherRequest{WatcherId: id})); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// A client that does not poll loses events, and is told so; the agent's memory is bounded.
func TestWatcherOverflow(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	ctx := t.Context()
	made, err := a.fs.CreateWatcher(ctx, as("root", &filesystempb.CreateWatcherRequest{Path: dir}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12_000 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the loss is told", func() bool {
		_, err := a.fs.GetWatcherEvents(ctx, as("root", &filesystempb.GetWatcherEventsRequest{WatcherId: made.Msg.WatcherId}))
		return connect.CodeOf(err) == connect.CodeResourceExhausted
	})
}

func TestWatchRefuses(t *testing.T) {
	a := start(t)
	file := a.write(t, "file", "")
	for path, code := range map[string]connect.Code{"/no/such": connect.CodeNotFound, file: connect.CodeInvalidArgument} {
		if _, err := a.fs.CreateWatcher(t.Context(), as("root", &filesystempb.CreateWatcherRequest{Path: path})); connect.CodeOf(err) != code {
			t.Errorf("%s: %v", path, err)
		}
	}
	var ids []string
	dir := openDir(t)
	for {
		res, err := a.fs.CreateWatcher(t.Context(), as("root", &filesystempb.CreateWatcherRequest{Path: dir}))
		if err != nil {
			if connect.CodeOf(err) != connect.CodeResourceExhausted {
				t.Errorf("too many: %v", err)
			}
			break
		}
		ids = append(ids, res.Msg.WatcherId)
		if len(ids) > 200 {
			t.Fatal("watchers have no bound")
		}
	}
}
