package snapshot_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/store/dir"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
)

// counting counts what goes to a store, and fails on demand.
type counting struct {
	snapshot.Blobs
	mu   sync.Mutex
	puts map[string]int
	done int    // puts that went well
	then func() // called once two have, before the third begins
}

func (c *counting) Put(ctx context.Context, name string, r io.Reader) error {
	c.mu.Lock()
	if c.puts == nil {
		c.puts = map[string]int{}
	}
	c.puts[name]++
	if c.then != nil { // one after the other, so that two are there and no more
		defer c.mu.Unlock()
		if c.done == 2 {
			c.then()
			c.then = nil
		}
		err := c.Blobs.Put(ctx, name, r)
		if err == nil {
			c.done++
		}
		return err
	}
	c.mu.Unlock()
	return c.Blobs.Put(ctx, name, r)
}

func folder(t *testing.T) *dir.Store {
	t.Helper()
	b, err := dir.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCopies holds that a snapshot comes back whole on another machine, over a folder and over a real S3 server, and that the background work does it
// unasked.
func TestCopies(t *testing.T) {
	for name, open3 := range map[string]func(*testing.T) snapshot.Blobs{
		"dir": func(t *testing.T) snapshot.Blobs { return folder(t) },
		"s3":  func(t *testing.T) snapshot.Blobs { return s3test.Start(t).Open() },
	} {
		t.Run(name, func(t *testing.T) {
			blobs := open3(t)
			here, there := open(t, snapshot.Config{Blobs: blobs}), open(t, snapshot.Config{Blobs: blobs})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- here.Run(ctx) }()
			snap := create(t, here, meta, 1)
			waitFor(t, "copy", func() bool { return here.Progress(snap.ID).State == snapshot.StateCopied })
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			p := here.Progress(snap.ID)
			if p.Done != p.Total || p.Total < 9<<20 || p.Total > 14<<20 {
				t.Errorf("progress: %+v", p)
			}
			got, release, err := there.Get(t.Context(), snap.ID)
			if err != nil {
				t.Fatal("get: ", err)
			}
			defer release()
			sameFiles(t, snap.Dir(), got.Dir())
			if got.Stored > 20<<20 {
				t.Errorf("holes were filled: %d bytes", got.Stored)
			}
			all, err := there.Copies(t.Context(), snapshot.Named)
			if err != nil || len(all) != 1 || all[0].ID != snap.ID {
				t.Errorf("copies: %+v, %v", all, err)
			}
			if err := here.Remove(t.Context(), snap.ID); err != nil {
				t.Fatal(err)
			}
			if _, _, err := here.Get(t.Context(), snap.ID); !tartarus.Is(err, tartarus.NotFound) {
				t.Error("removed, and still to be had: ", err)
			}
		})
	}
}

// TestInterruptedUpload holds that a copy that was cut off goes on where it was, over an S3 server that was killed, and that the source stays as
// it is.
func TestInterruptedUpload(t *testing.T) {
	server := s3test.Start(t)
	blobs := &counting{Blobs: server.Open()}
	s := open(t, snapshot.Config{Blobs: blobs})
	snap := create(t, s, meta, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	blobs.then = server.Kill
	if err := s.Upload(ctx, snap.ID); err == nil {
		t.Fatal("an upload to a dead server succeeded")
	}
	if _, err := s.Verify(t.Context(), snap.ID); err != nil {
		t.Error("the source: ", err)
	}
	server.Restart()
	blobs.puts = nil
	if err := s.Upload(t.Context(), snap.ID); err != nil {
		t.Fatal("again: ", err)
	}
	if n := len(blobs.puts); n != 4 { // of 3 chunks of pages, 2 more and the manifest: two were there
		t.Errorf("%d blobs were sent the second time: %v", n, blobs.puts)
	}
	there := open(t, snapshot.Config{Blobs: blobs})
	got, release, err := there.Get(t.Context(), snap.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	sameFiles(t, snap.Dir(), got.Dir())
}

// TestSharedChunks holds that what two snapshots have in common is stored once, and goes with the last of them.
func TestSharedChunks(t *testing.T) {
	blobs := &counting{Blobs: folder(t)}
	s := open(t, snapshot.Config{Blobs: blobs})
	first, second := create(t, s, meta, 1), create(t, s, meta, 1)
	for _, id := range []string{first.ID, second.ID} {
		if err := s.Upload(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range blobs.puts {
		if n > 1 {
			t.Errorf("%s was stored %d times", name, n)
		}
	}
	if err := s.Remove(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	tomorrow := time.Now().Add(25 * time.Hour)
	if freed, err := s.Collect(t.Context(), tomorrow); err != nil || freed != 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if err := s.Remove(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Collect(t.Context(), time.Now()); err != nil || freed != 0 {
		t.Errorf("an upload might still be under way; freed %d, %v", freed, err)
	}
	if freed, err := s.Collect(t.Context(), tomorrow); err != nil || freed < 9<<20 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if err := blobs.List(t.Context(), "", func(b snapshot.Blob) error { t.Errorf("left: %s", b.Name); return nil }); err != nil {
		t.Error(err)
	}
}

// TestCopyOfAPausedSandbox holds that a sandbox that comes back does not wait for an object store that is away, and that its copy goes once it is there again.
func TestCopyOfAPausedSandbox(t *testing.T) {
	server := s3test.Start(t)
	blobs := server.Open()
	s := open(t, snapshot.Config{Blobs: blobs, Node: "n1"})
	m := meta
	m.Kind = snapshot.Sandbox
	first, second := create(t, s, m, 1), create(t, s, m, 2)
	for _, id := range []string{first.ID, second.ID} {
		if err := s.Upload(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	server.Kill()
	began := time.Now()
	if err := s.Remove(t.Context(), first.ID); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("removed after %s: %v", time.Since(began), err)
	}
	server.Restart()
	if err := s.Remove(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	// Another process of the same node, which was told of neither.
	again := open(t, snapshot.Config{Blobs: blobs, Node: "n1"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- again.Run(ctx) }()
	waitFor(t, "tidied object store", func() bool {
		left, err := again.Copies(ctx, snapshot.Sandbox)
		return err == nil && len(left) == 0
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestMend holds that a snapshot that is damaged here becomes its copy again, where there is one.
func TestMend(t *testing.T) {
	root := t.TempDir()
	s := open(t, snapshot.Config{Dir: root, Blobs: folder(t)})
	snap := create(t, s, meta, 1)
	if err := s.Mend(t.Context(), snap.ID); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("without a copy: ", err)
	}
	if err := s.Upload(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	whole := t.TempDir()
	if err := os.CopyFS(filepath.Join(whole, "files"), os.DirFS(snap.Dir())); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"truncated": func() error { return os.Truncate(filepath.Join(snap.Dir(), "pages.img"), 1) },
		"missing":   func() error { return os.Remove(filepath.Join(snap.Dir(), "pages.img")) },
		"manifest":  func() error { return os.WriteFile(filepath.Join(root, snap.ID, "manifest.json"), []byte("{"), 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(snap.ID); !tartarus.Is(err, tartarus.Corrupt) {
			t.Errorf("%s: open: %v", name, err)
		}
		if err := s.Mend(t.Context(), snap.ID); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := s.Verify(t.Context(), snap.ID); err != nil {
			t.Errorf("%s: mended: %v", name, err)
		}
		sameFiles(t, filepath.Join(whole, "files"), snap.Dir())
	}
	if err := s.Remove(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	onlyTmp(t, root)
}

// TestBadCopies holds that nothing that is not what was stored is ever restored from, and that nothing of it stays here.
func TestBadCopies(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, b snapshot.Blobs, chunk snapshot.Blob)
		says string
	}{
		"missing chunk": {says: "missing from the object store", do: func(t *testing.T, b snapshot.Blobs, chunk snapshot.Blob) {
			if err := b.Delete(t.Context(), chunk.Name); err != nil {
				t.Fatal(err)
			}
		}},
		"truncated chunk": {says: "cannot be unpacked", do: func(t *testing.T, b snapshot.Blobs, chunk snapshot.Blob) {
			rewrite(t, b, chunk.Name, func(s []byte) []byte { return s[:len(s)/2] })
		}},
		"flipped bit": {says: "chunk", do: func(t *testing.T, b snapshot.Blobs, chunk snapshot.Blob) {
			rewrite(t, b, chunk.Name, func(s []byte) []byte { s[len(s)/2] ^= 1; return s })
		}},
		"another chunk": {says: "not what was stored", do: func(t *testing.T, b snapshot.Blobs, chunk snapshot.Blob) {
			rewrite(t, b, chunk.Name, func([]byte) []byte { // an empty frame of zstd
				return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x00, 0x01, 0x00, 0x00, 0x99, 0xe9, 0xd8, 0x51}
			})
		}},
		"manifest": {says: "manifest", do: func(t *testing.T, b snapshot.Blobs, _ snapshot.Blob) {
			err := b.List(t.Context(), "snapshots/", func(o snapshot.Blob) error {
				rewrite(t, b, o.Name, func(s []byte) []byte { return []byte(strings.Replace(string(s), "acme", "evil", 1)) })
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			blobs := folder(t)
			here := open(t, snapshot.Config{Blobs: blobs})
			snap := create(t, here, meta, 1)
			if err := here.Upload(t.Context(), snap.ID); err != nil {
				t.Fatal(err)
			}
			var biggest snapshot.Blob
			if err := blobs.List(t.Context(), "chunks/", func(b snapshot.Blob) error {
				if b.Size > biggest.Size {
					biggest = b
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			c.do(t, blobs, biggest)
			root := t.TempDir()
			_, _, err := open(t, snapshot.Config{Dir: root, Blobs: blobs}).Get(t.Context(), snap.ID)
			if !tartarus.Is(err, tartarus.Corrupt) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("get: %v", err)
			}
			onlyTmp(t, root)
		})
	}
}

func rewrite(t *testing.T, b snapshot.Blobs, name string, f func([]byte) []byte) {
	t.Helper()
	r, err := b.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), name, strings.NewReader(string(f(body)))); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk holds that a disk that runs full while a snapshot is written or fetched leaves the rest as it was.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=16m"); err != nil {
		t.Skip("cannot mount a tmpfs here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	blobs := folder(t)
	here := open(t, snapshot.Config{Blobs: blobs})
	copied := create(t, here, meta, 2)
	if err := here.Upload(t.Context(), copied.ID); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(small, "s")
	s := open(t, snapshot.Config{Dir: root, Blobs: blobs})
	first := create(t, s, meta, 1)
	if _, err := s.Create(t.Context(), meta, content(3)); !errors.Is(err, unix.ENOSPC) {
		t.Error("create: ", err)
	}
	if _, _, err := s.Get(t.Context(), copied.ID); !errors.Is(err, unix.ENOSPC) {
		t.Error("get: ", err)
	}
	if _, err := s.Verify(t.Context(), first.ID); err != nil {
		t.Error("the one that was there: ", err)
	}
	if err := s.Remove(t.Context(), first.ID); err != nil {
		t.Error(err)
	}
	onlyTmp(t, root)
}

// TestAway leaves a file in a real object store: it is linked to, counts as there, and is fetched for whoever needs it whole.
func TestAway(t *testing.T) {
	server := s3test.Start(t)
	blobs := server.Open()
	a := open(t, snapshot.Config{Node: "a", Blobs: blobs})
	taken := create(t, a, meta, 7)
	if err := a.Upload(t.Context(), taken.ID); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "snapshots")
	b := open(t, snapshot.Config{Dir: dir, Node: "b", Blobs: blobs})
	get := func(s *snapshot.Store, without ...string) snapshot.Snapshot {
		t.Helper()
		snap, release, err := s.GetWithout(t.Context(), taken.ID, without)
		if err != nil {
			t.Fatal(err)
		}
		release()
		return snap
	}
	snap := get(b, "pages.img", "no such file")
	if len(snap.Away) != 1 || snap.Away[0] != "pages.img" || snap.Stored >= taken.Stored {
		t.Errorf("away %v, %d bytes stored of %d", snap.Away, snap.Stored, taken.Stored)
	}
	if _, err := os.Stat(filepath.Join(snap.Dir(), "pages.img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was fetched: %v", err)
	}
	links, err := b.Links(t.Context(), snap.Dir(), "pages.img")
	if err != nil || len(links) != 3 {
		t.Fatalf("%d links, %v", len(links), err)
	}
	for _, l := range links {
		res, err := http.Get(l.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK || strings.Contains(l.URL, "test-secret") {
			t.Errorf("a link answers %s", res.Status)
		}
		u, err := url.Parse(l.URL)
		if err != nil {
			t.Fatal(err)
		}
		if u.RawQuery = ""; u.String() == "" {
			t.Fatal("no address")
		}
		if res, err = http.Get(u.String()); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("without its signature it answers %s", res.Status)
		}
	}
	if _, err := b.Links(t.Context(), filepath.Dir(dir), "pages.img"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("links to what is no snapshot: %v", err)
	}
	// All that asks whether it is whole, or copies it, is content.
	if _, err := b.Verify(t.Context(), taken.ID); err != nil {
		t.Error(err)
	}
	if err := b.Upload(t.Context(), taken.ID); err != nil {
		t.Error(err)
	}
	b = open(t, snapshot.Config{Dir: dir, Node: "b", Blobs: blobs})
	if again := get(b, "pages.img"); len(again.Away) != 1 {
		t.Errorf("after a restart away is %v", again.Away)
	}
	whole := get(b)
	if len(whole.Away) != 0 {
		t.Errorf("still away: %v", whole.Away)
	}
	sameFiles(t, taken.Dir(), whole.Dir())

	// One that was removed is not used any more, wherever the rest of it is.
	c := open(t, snapshot.Config{Node: "c", Blobs: blobs})
	get(c, "pages.img")
	if err := a.Remove(t.Context(), taken.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.GetWithout(t.Context(), taken.ID, []string{"pages.img"}); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("of one that was removed: %v", err)
	}
	if left := c.List(snapshot.Filter{}); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}
